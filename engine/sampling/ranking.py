"""A whole vocabulary in the order of its scores."""

import numpy as np
import torch
from torch import Tensor

_TOKEN_NUM_BITS = 32
_ALL_BUT_SIGN = 0x7FFFFFFF


def ranked(scores: Tensor) -> tuple[Tensor, Tensor]:
    """[B, V] -> the scores of each row, the highest first, and their token ids, int64; equal ones by token id.

    float32 on the CPU goes to numpy's sort of integers, which takes half as long as torch's sort of pairs.
    """
    if scores.dtype != torch.float32 or scores.device.type != "cpu":
        return scores.sort(dim=1, descending=True, stable=True)
    # A key is the score as an integer that falls as it rises, and then the token; zeros lose their sign.
    bits = (scores + 0.0).view(torch.int32)
    falling = ~(bits ^ ((bits >> 31) & _ALL_BUT_SIGN))
    token_ids = torch.arange(scores.shape[1])
    keys = (falling.long() << _TOKEN_NUM_BITS) | token_ids
    order = torch.from_numpy(np.sort(keys.numpy(), axis=1)) & ((1 << _TOKEN_NUM_BITS) - 1)
    return scores.gather(1, order), order

"""Rows of different length in one batch, padded on the right."""

from __future__ import annotations

import torch
from torch import Tensor


def tail(extended: Tensor, lengths: Tensor | None, size: int) -> Tensor:
    """The last `size` real tokens of each row.

    extended: [B, size + T, ...], the tail of before and the new tokens. lengths: int64 [B], how many of the T are
    real, or None for all. Returns [B, size, ...].
    """
    if lengths is None:
        return extended[:, extended.shape[1] - size :]
    index = lengths[:, None] + torch.arange(size, device=extended.device)
    index = index.reshape(*index.shape, *[1] * (extended.ndim - 2))
    return extended.gather(1, index.expand(-1, -1, *extended.shape[2:]))

"""A vocabulary in the order of its scores: what the most likely tokens weigh together, and which of them lies where.

A token's weight is exp((score - highest score) / temperature), in float64; ranks go from the heaviest to the lightest,
equal scores by token id. Every question is asked of some rows of the batch at once, and none waits for the device.
What is said of a row whose highest score is not finite means nothing.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

_TOKEN_NUM_BITS = 32
_ALL_BUT_SIGN = 0x7FFFFFFF


class Ranking(Protocol):
    """Of scores [B, V]. Masses are float64 [n], for the rows int64 [n]; `total` is of all tokens and all rows."""

    total: Tensor

    def num_heavier(self, least: Tensor, rows: Tensor) -> Tensor:
        """How many tokens weigh at least so much, float64 [n] between 0 and 1 -> int64 [n]."""

    def mass_of_first(self, num_tokens: Tensor, rows: Tensor) -> Tensor:
        """What the `num_tokens` (int64 [n], from 1 on) heaviest tokens weigh together."""

    def mass_reaching(self, mass: Tensor, rows: Tensor) -> Tensor:
        """What the fewest of the heaviest tokens weigh together that weigh at least `mass`, which is in (0, total]."""

    def token_beyond(self, mass: Tensor) -> Tensor:
        """Of every row, the token with which the heaviest ones weigh more than `mass`, in [0, total): int64 [B]."""


class SortedRanking:
    """By sorting all scores: for devices that sort fast and are not to be waited for, and for few rows anywhere.

    temperature: float64 [B, 1].
    """

    def __init__(self, scores: Tensor, temperature: Tensor) -> None:
        values, self._order = _ranked(scores)
        self._weights = ((values.double() - values[:, :1].double()) / temperature).exp()
        self._cumulative = self._weights.cumsum(dim=1)
        self.total = self._cumulative[:, -1]

    def num_heavier(self, least: Tensor, rows: Tensor) -> Tensor:
        return (self._weights.index_select(0, rows) >= least[:, None]).sum(dim=1)

    def mass_of_first(self, num_tokens: Tensor, rows: Tensor) -> Tensor:
        return self._cumulative.index_select(0, rows).gather(1, num_tokens[:, None] - 1)[:, 0]

    def mass_reaching(self, mass: Tensor, rows: Tensor) -> Tensor:
        cumulative = self._cumulative.index_select(0, rows)
        place = torch.searchsorted(cumulative, mass[:, None]).clamp(max=cumulative.shape[1] - 1)
        return cumulative.gather(1, place)[:, 0]

    def token_beyond(self, mass: Tensor) -> Tensor:
        place = torch.searchsorted(self._cumulative, mass[:, None], right=True).clamp(max=self._order.shape[1] - 1)
        return self._order.gather(1, place)[:, 0]


def _ranked(scores: Tensor) -> tuple[Tensor, Tensor]:
    """[B, V] -> the scores of each row, the highest first, and their token ids, int64; equal ones by token id.

    float32 on the CPU goes to numpy's sort of integers, which takes a fraction of torch's sort of pairs.
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

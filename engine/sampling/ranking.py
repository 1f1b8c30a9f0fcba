"""A vocabulary in the order of its scores: what the most likely tokens weigh together, and which of them lies where.

A token's weight is exp((score - highest score) / temperature), in float64; ranks go from the heaviest to the lightest,
equal scores by token id. Every question is asked of some rows of the batch at once, and none waits for the device.
What is said of a row whose highest score is not finite means nothing.
"""

from typing import Protocol

import torch
from torch import Tensor


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
    """By sorting all scores; for devices that sort fast and are not to be waited for. temperature: float64 [B, 1]."""

    def __init__(self, scores: Tensor, temperature: Tensor) -> None:
        values, self._order = scores.sort(dim=1, descending=True, stable=True)
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

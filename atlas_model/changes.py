"""What may change of a tensor whose first dimension is the batch: some places, some rows, or all of it.

`write` writes in place, into a contiguous tensor that shares no memory with the change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# What so many rows move no longer fits into the nearest caches: then fewer passes are faster than fewer operations.
MANY_ROWS = 64


@dataclass(frozen=True, slots=True)
class Insertion:
    """Vectors [N, d] for N places, int64, of the tensor seen as [-1, d]."""

    places: Tensor
    vectors: Tensor

    def of_first_rows(self, count: int, num_rows: int) -> Insertion:
        """What it says of the first of `num_rows` rows, each of which has as many places, in their order."""
        num_places = count * (len(self.places) // num_rows)
        return Insertion(self.places[:num_places], self.vectors[:num_places])

    def write(self, tensor: Tensor) -> None:
        tensor.view(-1, tensor.shape[-1]).index_copy_(0, self.places, self.vectors)


@dataclass(frozen=True, slots=True)
class Rows:
    """New values [R, ...] of R rows, int64."""

    rows: Tensor
    values: Tensor

    def write(self, tensor: Tensor) -> None:
        tensor.index_copy_(0, self.rows, self.values)


@dataclass(frozen=True, slots=True)
class Whole:
    """New values of all rows."""

    values: Tensor

    def of_first_rows(self, count: int, num_rows: int) -> Whole:
        assert len(self.values) == num_rows
        return Whole(self.values[:count])

    def write(self, tensor: Tensor) -> None:
        tensor.copy_(self.values)


@dataclass(frozen=True, slots=True)
class Shift:
    """New vectors [B, d] at the end of the second dimension of [B, T, d], from which the first go."""

    vectors: Tensor

    def of_first_rows(self, count: int, num_rows: int) -> Shift:
        assert len(self.vectors) == num_rows
        return Shift(self.vectors[:count])

    def write(self, tensor: Tensor) -> None:
        if len(tensor) < MANY_ROWS:
            tensor.copy_(torch.cat([tensor[:, 1:], self.vectors[:, None]], dim=1))
            return
        for token in range(tensor.shape[1] - 1):
            tensor[:, token].copy_(tensor[:, token + 1])
        tensor[:, -1].copy_(self.vectors)


Change = Insertion | Rows | Shift | Whole


def flat_places(place: Tensor, num_heads: int, length: int) -> Tensor:
    """One place a row, int64 [B], of each head's `length` -> [B * num_heads], counted over all rows and heads."""
    first = torch.arange(0, len(place) * num_heads * length, length, device=place.device)
    return (first.view(-1, num_heads) + place[:, None]).view(-1)

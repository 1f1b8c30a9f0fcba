"""Rows of different length in one batch, padded on the right, and calls cut where a chunk ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def tail(extended: Tensor, lengths: Tensor | None, size: int) -> Tensor:
    """The last `size` real tokens of each row.

    extended: [B, size + T, ...], the tail of before and the new tokens. lengths: int64 [B], how many of the T are
    real, or None for all. Returns [B, size, ...].
    """
    if lengths is None:
        return extended[:, extended.shape[1] - size :]
    return _pick(extended, lengths[:, None] + torch.arange(size, device=extended.device))


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens of a call that lie in one chunk of their row.

    columns: where they stand in the call, the same for all rows or int64 [B, W]. lengths: int64 [B], how many of the W
    are real, None for all; a row may have none. position: int64 [B], tokens fed before them.
    """

    columns: slice | Tensor
    lengths: Tensor | None
    position: Tensor

    def take(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [B, W, ...]."""
        return x[:, self.columns] if isinstance(self.columns, slice) else _pick(x, self.columns)


def pieces_by_chunk(position: Tensor, num_new: int, lengths: Tensor | None, size: int) -> list[Piece]:
    """Cut T = num_new tokens a row where each row's chunks of `size`, counted from its session's start, end."""
    phase = position % size
    if lengths is None and (num_new == 1 or bool((phase == phase[0]).all())):
        first = min(num_new, size - int(phase[0])) if num_new > 1 else 1
        starts = [0, *range(first, num_new, size)]
        stops = [*starts[1:], num_new]
        return [Piece(slice(start, stop), None, position + start) for start, stop in zip(starts, stops, strict=True)]
    total = torch.full_like(position, num_new) if lengths is None else lengths
    done = torch.zeros_like(position)
    pieces = []
    while bool((done < total).any()):
        here = torch.minimum(total - done, size - (position + done) % size)
        columns = done[:, None] + torch.arange(int(here.max()), device=position.device)
        pieces.append(Piece(columns.clamp(max=num_new - 1), here, position + done))
        done = done + here
    return pieces


def join_pieces(pieces: Sequence[Piece], parts: Sequence[Tensor], num_new: int) -> Tensor:
    """The inverse of `take` on every piece, [B, T, ...]; arbitrary in the padding."""
    joined = torch.cat(list(parts), dim=1)
    if isinstance(pieces[0].columns, slice):
        return joined
    source = torch.zeros(len(joined), num_new + 1, dtype=torch.int64, device=joined.device)
    offset = 0
    for piece in pieces:
        assert isinstance(piece.columns, Tensor)
        assert piece.lengths is not None
        places = torch.arange(piece.columns.shape[1], device=joined.device)
        columns = torch.where(places < piece.lengths[:, None], piece.columns, num_new)
        source.scatter_(1, columns, (offset + places).expand_as(columns))
        offset += len(places)
    return _pick(joined, source[:, :num_new])


def _pick(x: Tensor, columns: Tensor) -> Tensor:
    """x [B, T, ...], columns int64 [B, W] -> [B, W, ...]."""
    index = columns.reshape(*columns.shape, *[1] * (x.ndim - 2))
    return x.gather(1, index.expand(-1, -1, *x.shape[2:]))

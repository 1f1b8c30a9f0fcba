"""`Ranking` on a CPU, without sorting a vocabulary: tokens are counted into bins by their score, the highest first, and
where an answer lies inside of a bin, the few tokens of that bin alone are sorted.

Costs about two passes over the scores beside the exponentials, a tenth of a sort; at worst, when all scores are nearly
equal and lie in one bin, as much as a sort of everything. What is small is numpy's, whose calls cost less than torch's.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# The weights of a bin's tokens differ by a factor of exp(1 / _NUM_BINS_PER_NAT) at most; the last bin holds all those
# that are lighter than e^-16 of the heaviest.
_NUM_BINS = 1024
_NUM_BINS_PER_NAT = 64

_Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class _Bin:
    """One bin of each of some rows, its tokens in order of rank; arrays [n, m].

    cumulative: what a token and all heavier ones of the vocabulary weigh together. last: [n], the place of the last
    token that weighs anything.
    """

    token_ids: _Array
    cumulative: _Array
    last: _Array


class BinnedRanking:
    """temperature: float64 [B, 1]."""

    def __init__(self, scores: Tensor, temperature: Tensor) -> None:
        peaks = scores.amax(dim=1, keepdim=True)
        if not bool(peaks.isfinite().all()):
            scores = scores.where(peaks.isfinite(), 0.0)
            peaks = scores.amax(dim=1, keepdim=True)
        # Bounded, so that a temperature of nearly nothing makes no product of nothing and infinity.
        scales = (_NUM_BINS_PER_NAT / temperature).clamp(max=1e30).to(scores.dtype)
        bins = (peaks - scores).mul_(scales).clamp_(max=_NUM_BINS - 1).to(torch.int32)
        weights = scores.double().sub_(peaks).div_(temperature).exp_()
        masses = torch.zeros(len(scores), _NUM_BINS, dtype=torch.float64).scatter_add_(1, bins.long(), weights)
        # [B, 1 + bins]: what is heavier than a bin's tokens.
        self._starts = torch.zeros(len(scores), 1 + _NUM_BINS, dtype=torch.float64)
        torch.cumsum(masses, dim=1, out=self._starts[:, 1:])
        self.total = self._starts[:, -1]
        self._scores, self._weights = scores.numpy(), weights.numpy()
        self._bins = bins.to(torch.int16).numpy()

    def num_heavier(self, least: Tensor, rows: Tensor) -> Tensor:
        is_heavier = self._weights[rows.numpy()] >= least.numpy()[:, None]
        return torch.from_numpy(np.count_nonzero(is_heavier, axis=1))

    def mass_of_first(self, num_tokens: Tensor, rows: Tensor) -> Tensor:
        bins = torch.from_numpy(self._bins[rows.numpy()]).long()
        counts = torch.zeros(len(rows), _NUM_BINS, dtype=torch.int64).scatter_add_(1, bins, torch.ones_like(bins))
        ends = counts.cumsum(dim=1)
        which = torch.searchsorted(ends, num_tokens[:, None])
        place = num_tokens[:, None] - 1 - (ends - counts).gather(1, which)
        found = self._look_into(rows.numpy(), which[:, 0].numpy())
        return torch.from_numpy(np.take_along_axis(found.cumulative, place.numpy(), axis=1)[:, 0])

    def mass_reaching(self, mass: Tensor, rows: Tensor) -> Tensor:
        which = torch.searchsorted(self._starts[rows], mass[:, None])[:, 0] - 1
        found = self._look_into(rows.numpy(), which.numpy())
        place = np.minimum(np.count_nonzero(found.cumulative < mass.numpy()[:, None], axis=1), found.last)
        return torch.from_numpy(found.cumulative[np.arange(len(place)), place])

    def token_beyond(self, mass: Tensor) -> Tensor:
        which = torch.searchsorted(self._starts, mass[:, None], right=True)[:, 0] - 1
        found = self._look_into(np.arange(len(mass)), which.numpy())
        place = np.minimum(np.count_nonzero(found.cumulative <= mass.numpy()[:, None], axis=1), found.last)
        return torch.from_numpy(found.token_ids[np.arange(len(place)), place])

    def _look_into(self, rows: _Array, which: _Array) -> _Bin:
        """Bin `which` [n] of each row."""
        vocab_size = self._scores.shape[1]
        # Of one type, since another would have all of the bins converted.
        is_inside = self._bins[rows] == which[:, None].astype(self._bins.dtype)
        row, token_id = np.divmod(np.flatnonzero(is_inside), vocab_size)
        counts = np.bincount(row, minlength=len(rows))
        place = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
        shape = len(rows), int(counts.max())
        token_ids, falling, weights = np.zeros(shape, np.int64), np.full(shape, np.inf), np.zeros(shape)
        token_ids[row, place] = token_id
        falling[row, place] = -self._scores[rows[row], token_id]
        weights[row, place] = self._weights[rows[row], token_id]
        # Stable, so that of equal tokens the first comes first.
        order = np.argsort(falling, axis=1, kind="stable")
        token_ids, weights = np.take_along_axis(token_ids, order, 1), np.take_along_axis(weights, order, 1)
        starts = self._starts.numpy()
        # Rounding must not carry it into the next bin.
        cumulative = starts[rows, which, None] + np.cumsum(weights, axis=1)
        np.minimum(cumulative, starts[rows, which + 1, None], out=cumulative)
        return _Bin(token_ids, cumulative, np.maximum(np.count_nonzero(weights, axis=1) - 1, 0))

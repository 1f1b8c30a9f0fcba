"""Numbers from records: distributions and proportions. Pure: no clock, no files, no sockets."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# The two-sided 95 % quantile of the normal distribution.
Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Distribution:
    """What the field prints of a latency; `std` is the sample's, 0 for a single value."""

    n: int
    mean: float
    median: float
    std: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Proportion:
    """A share of right answers, with the 95 % Wilson interval, which stays honest at 0, at 1 and for small n."""

    n: int
    num_right: int
    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.share:5.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] n={self.n}"


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear interpolation between closest ranks, like numpy's default. `values` need not be sorted, nor be empty."""
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    below = math.floor(rank)
    above = math.ceil(rank)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def describe(values: Sequence[float]) -> Distribution | None:
    """None when there is nothing to describe."""
    if not values:
        return None
    return Distribution(
        n=len(values),
        mean=statistics.fmean(values),
        median=statistics.median(values),
        std=statistics.stdev(values) if len(values) > 1 else 0.0,
        p90=percentile(values, 90),
        p95=percentile(values, 95),
        p99=percentile(values, 99),
    )


def proportion(num_right: int, n: int) -> Proportion:
    """Wilson's score interval at 95 %. `n` must be positive."""
    share = num_right / n
    centre = share + Z_95**2 / (2 * n)
    half = Z_95 * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    scale = 1 + Z_95**2 / n
    # Rounding must not put the share itself, when it is 0 or 1, outside of its interval.
    low = 0.0 if num_right == 0 else (centre - half) / scale
    high = 1.0 if num_right == n else (centre + half) / scale
    return Proportion(n, num_right, share, low, high)

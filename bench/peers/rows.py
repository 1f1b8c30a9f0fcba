"""What was measured of one pair, ours and a peer's, and what all pairs come to. Pure: no clock, no models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from bench.clock import median_ratio
from bench.peers.contender import Phase


@dataclass(frozen=True, slots=True)
class Measurement:
    """Seconds of each turn, ours and the peer's, for `num_tokens` tokens of each of `num_rows` sequences.

    length: of the prompt, or the position at which decoding began.
    """

    package: str
    peer: str
    phase: Phase
    num_rows: int
    length: int
    num_tokens: int
    seconds: Sequence[float]
    peer_seconds: Sequence[float]


@dataclass(frozen=True, slots=True)
class Row:
    """A measurement's medians. Tokens a second are those of all sequences together.

    speed_ratio: ours over theirs, the median of the turns' own ratios.
    """

    package: str
    peer: str
    phase: Phase
    num_rows: int
    length: int
    tokens_per_second: float
    peer_tokens_per_second: float
    speed_ratio: float
    num_turns: int

    @classmethod
    def of(cls, measured: Measurement) -> Row:
        num_tokens = measured.num_rows * measured.num_tokens
        return cls(
            package=measured.package,
            peer=measured.peer,
            phase=measured.phase,
            num_rows=measured.num_rows,
            length=measured.length,
            tokens_per_second=num_tokens / median(measured.seconds),
            peer_tokens_per_second=num_tokens / median(measured.peer_seconds),
            speed_ratio=median_ratio(measured.peer_seconds, measured.seconds),
            num_turns=len(measured.seconds),
        )

    def __str__(self) -> str:
        return (
            f"{self.peer:<24} {self.phase:<8} {self.num_rows:>4} {self.length:>8,} {self.tokens_per_second:>11,.0f}"
            f" {self.peer_tokens_per_second:>11,.0f} {self.speed_ratio:>9.2f}"
        )


HEADINGS = f"{'peer':<24} {'phase':<8} {'rows':>4} {'length':>8} {'ours, t/s':>11} {'peer, t/s':>11} {'ours/peer':>9}"


def fastest_of_each_package(rows: Iterable[Row]) -> list[Row]:
    """Where a package was run in several ways, the one that did best against us, for each thing that was measured."""
    fastest: dict[tuple[str, Phase, int, int], Row] = {}
    for row in rows:
        key = (row.package, row.phase, row.num_rows, row.length)
        if key not in fastest or row.speed_ratio < fastest[key].speed_ratio:
            fastest[key] = row
    return list(fastest.values())

"""Corpora: folders of text files, each with a weight and with files that training never reads.

Promises: what is drawn is a function of the random generator, the corpora and their weights; held-out text and the
other never mix. Leaves sentences to `prose`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas_model.config import Config
from atlas_model.training.prose import HELD_OUT, CorpusError, Prose, ProseSource, WeightedProse


@dataclass(frozen=True, slots=True)
class CorpusConfig(Config):
    """A folder of `.txt` files.

    weight: how often a passage comes from here, relative to the other corpora's weights.
    held_out: names of files in it that training does not read and held-out measurements read alone.
    """

    directory: str
    weight: float = 1.0
    held_out: tuple[str, ...] = HELD_OUT

    def _check(self) -> None:
        self._require(self.directory != "", "directory must not be empty")
        self._require(0 < self.weight < math.inf, f"weight of {self.directory} must be positive and finite")

    def prose(self, held_out: bool = False) -> Prose:
        """Its text, or its held-out text. Raises CorpusError when there is none, or a file to hold out is not there.

        Our own names are held out of whatever folder has them; those that a recipe names must be in theirs.
        """
        if not Path(self.directory).is_dir():
            raise CorpusError(f"there is no folder {self.directory}")
        if self.held_out != HELD_OUT:
            there = {path.name for path in Path(self.directory).rglob("*.txt")}
            for name in self.held_out:
                if name not in there:
                    raise CorpusError(f"{self.directory} has no {name!r}, which held_out names")
        return Prose(Path(self.directory), self.held_out, held_out)


def parse_corpus(text: str) -> CorpusConfig:
    """`DIR` or `WEIGHT:DIR`. Raises ConfigError for a weight that is none."""
    before, colon, after = text.partition(":")
    try:
        weight = float(before)
    except ValueError:
        return CorpusConfig(text)
    return CorpusConfig(after, weight) if colon else CorpusConfig(text)


def read_corpora(corpora: Sequence[CorpusConfig]) -> ProseSource:
    """The text to train on, by the corpora's weights. Raises CorpusError, which names the folder."""
    return _weighted([(corpus.prose(), corpus.weight) for corpus in corpora])


def read_held_out(corpora: Sequence[CorpusConfig]) -> ProseSource:
    """The held-out text of those corpora that have any. Raises CorpusError when none has."""
    sources: list[tuple[ProseSource, float]] = []
    for corpus in corpora:
        if any(path.name in corpus.held_out for path in Path(corpus.directory).rglob("*.txt")):
            sources.append((corpus.prose(held_out=True), corpus.weight))
    if not sources:
        directories = ", ".join(corpus.directory for corpus in corpora)
        raise CorpusError(f"no held-out text in {directories}: name files to hold out in the recipe's [[corpora]]")
    return _weighted(sources)


def _weighted(sources: Sequence[tuple[ProseSource, float]]) -> ProseSource:
    return sources[0][0] if len(sources) == 1 else WeightedProse(sources)

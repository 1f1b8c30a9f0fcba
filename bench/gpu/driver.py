"""One engine core, driven by hand: what each sequence said, and when."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from engine.core import EngineCore
from engine.sequence import Sequence, SequenceState


@dataclass(slots=True)
class Heard:
    """What one sequence has said since it was `added`: its tokens, when they came, and the state that it left."""

    added: float
    token_ids: list[int] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    state: SequenceState | None = None

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens."""
        return [later - earlier for earlier, later in pairwise(self.moments)]


def drive(core: EngineCore, sequences: Iterable[Sequence], until_ended: Iterable[str] = ()) -> dict[str, Heard]:
    """Adds the sequences and steps until all have ended, or those named have; the others are then aborted.

    Raises what ended a sequence.
    """
    heard = {}
    for sequence in sequences:
        core.add(sequence)
        heard[sequence.sequence_id] = Heard(time.perf_counter())
    open_ids = set(until_ended) or set(heard)
    while open_ids:
        for output in core.step():
            if output.error is not None:
                raise output.error
            own = heard[output.sequence_id]
            own.token_ids += output.token_ids
            if output.token_ids:
                own.moments.append(time.perf_counter())
            if output.finish_reason is not None:
                own.state = output.state
                open_ids.discard(output.sequence_id)
    for sequence_id in heard:
        core.abort(sequence_id)
    core.step()
    return heard

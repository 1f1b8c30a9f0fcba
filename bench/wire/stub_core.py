"""In place of the engine's core: the same token for everybody at a steady pace, and no model."""

from __future__ import annotations

import os
import time

from atlas_model.checkpoint import Checkpoint
from bench.wire.pace import INTERVAL_VARIABLE
from engine.config import EngineConfig
from engine.sequence import FinishReason, Sequence, SequenceOutput, SequenceState
from engine.telemetry import Counters, EngineStats

TEXT = " word"
_TOKEN_ID = 7


class StubCore:
    """What `Engine` asks of an EngineCore, for stateless answers of `max_tokens` tokens. A step begins
    an interval after the one before, and takes next to no processor time."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig) -> None:
        self._num_slots = config.max_num_sequences
        self._interval_seconds = float(os.environ[INTERVAL_VARIABLE])
        self._due = 0.0
        self._sequences: dict[str, Sequence] = {}
        self._num_generated: dict[str, int] = {}
        self._counters = Counters()

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    def check(self, sequence: Sequence) -> None:
        """Everything can be asked for."""

    def add(self, sequence: Sequence) -> None:
        assert sequence.params is not None, "the stub reads no documents"
        assert not sequence.leaves_state, "the stub has no states"
        self._sequences[sequence.sequence_id] = sequence
        self._num_generated[sequence.sequence_id] = 0

    def abort(self, sequence_id: str) -> None:
        if self._sequences.pop(sequence_id, None) is not None:
            del self._num_generated[sequence_id]

    def forget(self, state: SequenceState) -> None:
        raise AssertionError("the stub has no states")

    def cut_short(self) -> None:
        """The bench ends the server when its answers have ended."""

    def step(self) -> list[SequenceOutput]:
        if not self._sequences:
            return []
        now = time.monotonic()
        if now < self._due:
            time.sleep(self._due - now)
        self._due = max(now, self._due) + self._interval_seconds
        return [self._next(sequence) for sequence in list(self._sequences.values())]

    def stats(self) -> EngineStats:
        num_running = len(self._sequences)
        return EngineStats(
            num_running=num_running,
            num_waiting=0,
            num_background_running=0,
            num_background_waiting=0,
            num_slots=self._num_slots,
            num_slots_in_use=num_running,
            num_resident_states=0,
            prompt_tokens_total=0,
            generation_tokens_total=self._counters.generation_tokens_total,
            iteration_tokens=self._counters.iteration_tokens,
            max_num_paced_tokens=0,
            queue_seconds=self._counters.queue_seconds,
            memory=self._counters.memory,
        )

    def _next(self, sequence: Sequence) -> SequenceOutput:
        assert sequence.params is not None
        self._counters.generation_tokens_total += 1
        num_generated = self._num_generated[sequence.sequence_id] + 1
        self._num_generated[sequence.sequence_id] = num_generated
        reason = FinishReason.LENGTH if num_generated == sequence.params.max_tokens else None
        if reason is not None:
            self.abort(sequence.sequence_id)
        return SequenceOutput(
            sequence.sequence_id,
            TEXT,
            (_TOKEN_ID,),
            reason,
            num_prompt_tokens=len(sequence.prompt_token_ids),
            num_generated_tokens=num_generated,
        )

"""An engine core with sequences of its own, stepped by hand: no thread, no HTTP."""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import dataclass, replace

from atlas_model.checkpoint import Checkpoint
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import Sequence

_ENDLESS = 10**9
_MIN_NUM_STEPS = 8


@dataclass(frozen=True, slots=True)
class Work:
    """What some steps have done."""

    seconds: float
    num_steps: int
    num_prompt_tokens: int
    num_generated_tokens: int


class CoreDriver:
    """`num_readers` sequences that read documents of random tokens, one after the other, and `num_writers` whose
    answers never end, with the sampling parameters' defaults."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: EngineConfig,
        num_readers: int,
        num_writers: int,
        document_num_tokens: int,
    ) -> None:
        """settings: all but the number of slots."""
        # Room to spare: documents need not be given every slot.
        num_slots = num_writers + 2 * num_readers
        self._core = EngineCore(checkpoint, replace(settings, max_num_sequences=num_slots))
        self._vocab_size = checkpoint.tokenizer.vocab_size
        self._document_num_tokens = document_num_tokens
        self._random = random.Random(0)
        self._names = map(str, itertools.count())
        prompt = checkpoint.chat_format.generation_prompt(checkpoint.tokenizer)
        for seed in range(num_writers):
            params = SamplingParams(max_tokens=_ENDLESS, ignore_eos=True, seed=seed)
            self._core.add(Sequence(next(self._names), prompt, params))
        # Until all of them write.
        while self._core.stats().generation_tokens_total < num_writers:
            self._step()
        for _ in range(num_readers):
            self._open_document()

    def run(self, seconds: float) -> Work:
        """Whole steps for about so long, and enough of them that every kind of step has had its turn."""
        before = self._core.stats()
        began = time.perf_counter()
        num_steps = 0
        while (elapsed := time.perf_counter() - began) < seconds or num_steps < _MIN_NUM_STEPS:
            self._step()
            num_steps += 1
        after = self._core.stats()
        return Work(
            seconds=elapsed,
            num_steps=num_steps,
            num_prompt_tokens=after.prompt_tokens_total - before.prompt_tokens_total,
            num_generated_tokens=after.generation_tokens_total - before.generation_tokens_total,
        )

    def _step(self) -> None:
        for output in self._core.step():
            if output.error is not None:
                raise output.error
            if output.finish_reason is not None:
                self._open_document()

    def _open_document(self) -> None:
        token_ids = self._random.choices(range(self._vocab_size), k=self._document_num_tokens)
        self._core.add(Sequence(next(self._names), token_ids))

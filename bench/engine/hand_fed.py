"""One sequence after another through an engine core, fed by hand, and the text that it is fed."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from atlas_model.checkpoint import Checkpoint
from bench.workload import open_prose
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import FinishReason, Sequence, SequenceState

_PIECE_NUM_TOKENS = 1024


class HandFedCore:
    """A core with one slot; the memory is not sampled, which is measured for itself. settings: all else."""

    def __init__(self, checkpoint: Checkpoint, settings: EngineConfig) -> None:
        self._prompt = checkpoint.chat_format.generation_prompt(checkpoint.tokenizer)
        self._core = EngineCore(
            checkpoint,
            replace(
                settings,
                max_num_sequences=1,
                max_num_batched_tokens=_PIECE_NUM_TOKENS,
                max_num_piece_tokens=_PIECE_NUM_TOKENS,
                memory_sample_tokens=0,
            ),
        )

    def feed(self, token_ids: list[int], state: SequenceState | None = None) -> tuple[SequenceState, float]:
        """The state after the tokens, and the seconds that they took."""
        began = time.perf_counter()
        self._core.add(Sequence("fed", token_ids, state=state))
        while self._core.has_work:
            for output in self._core.step():
                if output.error is not None:
                    raise output.error
                if output.finish_reason is not None:
                    assert output.state is not None
                    return output.state, time.perf_counter() - began
        raise AssertionError("the core ended without an output")

    def decode(self, state: SequenceState, num_tokens: int) -> float:
        """Seconds a token of one greedy answer, after its first, which waits for the prompt."""
        params = SamplingParams(max_tokens=num_tokens + 1, temperature=0.0, ignore_eos=True)
        self._core.add(Sequence("decoded", self._prompt, params, state))
        moments: list[float] = []
        while self._core.has_work:
            for output in self._core.step():
                if output.error is not None:
                    raise output.error
                if output.finish_reason not in (None, FinishReason.LENGTH):
                    raise AssertionError(f"the answer ended by {output.finish_reason}")
                moments.append(time.perf_counter())
        return (moments[-1] - moments[0]) / (len(moments) - 1)


def endless_token_ids(checkpoint: Checkpoint, corpus: Path | None) -> Iterator[int]:
    """A session's first tokens, then prose for ever."""
    tokenizer, chat_format = checkpoint.tokenizer, checkpoint.chat_format
    yield from chat_format.session_start(tokenizer)
    yield from chat_format.document_start(tokenizer)
    for sentence in open_prose(corpus).passage(random.Random(0)):
        yield from tokenizer.encode(sentence.text + ("\n" if sentence.ends_paragraph else " "))

"""How long a caller waits for the engine's core: for the first token of a prompt, between tokens, beside a document."""

from __future__ import annotations

from statistics import median

import torch

from atlas_model.checkpoint import load_checkpoint
from bench.gpu.driver import drive
from bench.gpu.parts import Notes, Settings
from bench.summary import percentile
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import Sequence

PROMPT_NUM_TOKENS = 512
NUM_BESIDE_A_DOCUMENT = 16
# Longer than the answers beside it take to be written.
DOCUMENT_NUM_TOKENS = 2**17


def measure(settings: Settings, notes: Notes) -> None:
    waits = _Waits(settings)
    waits.between_tokens(1)
    firsts = [waits.for_the_first_token() for _ in range(settings.num_rounds)]
    notes.figure(f"first token of {PROMPT_NUM_TOKENS}, seconds", median(firsts))
    for batch_size in settings.batch_sizes:
        _note(notes, f"between tokens, {batch_size} answers", waits.between_tokens(batch_size))
    _note(
        notes,
        f"between tokens, {NUM_BESIDE_A_DOCUMENT} answers beside a document",
        waits.between_tokens(NUM_BESIDE_A_DOCUMENT, beside_a_document=True),
    )


def _note(notes: Notes, name: str, gaps: list[float]) -> None:
    notes.figure(f"{name}, median seconds", median(gaps))
    notes.figure(f"{name}, p99 seconds", percentile(gaps, 99))


class _Waits:
    def __init__(self, settings: Settings) -> None:
        checkpoint = load_checkpoint(settings.model, settings.device)
        slots = max(*settings.batch_sizes, NUM_BESIDE_A_DOCUMENT + 1)
        self._core = EngineCore(checkpoint, EngineConfig(max_num_sequences=slots, device=settings.device))
        self._vocab_size = checkpoint.tokenizer.vocab_size
        self._num_tokens = 16 * settings.num_rounds
        self._generator = torch.Generator().manual_seed(settings.seed)

    def for_the_first_token(self) -> float:
        """Seconds from adding a prompt, alone, to its first token."""
        heard = drive(self._core, [self._answer("first", PROMPT_NUM_TOKENS, 1)])["first"]
        return heard.moments[0] - heard.added

    def between_tokens(self, num_answers: int, *, beside_a_document: bool = False) -> list[float]:
        """The gaps of all answers together, all of them written at once."""
        answers = [self._answer(str(number), 16, self._num_tokens) for number in range(num_answers)]
        document = [Sequence("document", self._token_ids(DOCUMENT_NUM_TOKENS))] if beside_a_document else []
        heard = drive(self._core, [*answers, *document], until_ended=[each.sequence_id for each in answers])
        return [gap for each in answers for gap in heard[each.sequence_id].gaps]

    def _answer(self, name: str, num_prompt_tokens: int, num_tokens: int) -> Sequence:
        params = SamplingParams(max_tokens=num_tokens, temperature=1.0, ignore_eos=True, seed=0)
        return Sequence(name, self._token_ids(num_prompt_tokens), params)

    def _token_ids(self, num_tokens: int) -> list[int]:
        token_ids: list[int] = torch.randint(self._vocab_size, (num_tokens,), generator=self._generator).tolist()
        return token_ids

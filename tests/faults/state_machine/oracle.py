"""What the model answers to a sequence of tokens, by an engine that no session and no store ever touches."""

import uuid
from dataclasses import dataclass, replace
from typing import TypeVar

from atlas_model.text.chat_format import OPENING
from engine.engine import Engine
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import FinishReason, Sequence, SequenceState
from tests.faults.state_machine.model import Memory

MAX_NUM_REMEMBERED = 500
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Answer:
    """is_cut: it ended for its length."""

    token_ids: tuple[int, ...]
    text: str
    is_cut: bool


class Oracle:
    """Greedy, so that an answer is a function of the tokens. Remembers what it was asked last."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._answers: dict[tuple[tuple[int, ...], int], Answer] = {}
        self._states: dict[tuple[int, ...], SequenceState] = {}

    async def answer(self, memory: Memory, prompt: tuple[int, ...], max_tokens: int) -> Answer:
        asked = ((*memory.token_ids, *prompt), max_tokens)
        if asked not in self._answers:
            state = await self.state(memory)
            params = SamplingParams(temperature=0, max_tokens=max_tokens)
            token_ids: tuple[int, ...] = ()
            text, reason = "", None
            sequence = Sequence(uuid.uuid4().hex, prompt, params, state, opening=OPENING.encode())
            async for output in self._engine.generate(sequence):
                token_ids += output.token_ids
                text += output.text
                reason = output.finish_reason
            _make_room(self._answers)
            self._answers[asked] = Answer(token_ids, text, reason is FinishReason.LENGTH)
        return self._answers[asked]

    async def state(self, memory: Memory) -> SequenceState | None:
        """All of the memory's tokens, fed to a session that has read nothing; None when there are none."""
        if not memory.token_ids:
            return None
        fed, pending = memory.token_ids[: memory.position], memory.token_ids[memory.position :]
        if fed not in self._states:
            output = await self._engine.feed(Sequence(uuid.uuid4().hex, fed))
            assert output.state is not None
            _make_room(self._states)
            self._states[fed] = output.state
        return replace(self._states[fed], pending_token_ids=pending)


def _make_room(remembered: dict[K, V]) -> None:
    while len(remembered) >= MAX_NUM_REMEMBERED:
        del remembered[next(iter(remembered))]

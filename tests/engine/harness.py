"""What the engine's tests share: running a core to its end, comparing states, tiny models that do what a test needs."""

import copy
import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atlas_model.checkpoint import Checkpoint
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.sequence import FinishReason, Sequence, SequenceOutput, SequenceState
from tests.tiny import tiny_checkpoint

# However slow the machine is, prompts are cut into the same pieces.
SMALL = EngineConfig(
    max_num_sequences=4,
    max_num_waiting=8,
    max_num_batched_tokens=64,
    max_num_piece_tokens=32,
    max_added_itl_seconds=1e9,
)


def tiny() -> Checkpoint:
    """The tiny float64 model, one for all tests: nobody may change it."""
    return tiny_checkpoint()


def tiny_on_its_own() -> Checkpoint:
    """The tiny model for one test, which may move it to another device."""
    return dataclasses.replace(tiny(), model=copy.deepcopy(tiny().model))


def new_core(config: EngineConfig = SMALL, checkpoint: Checkpoint | None = None) -> EngineCore:
    return EngineCore(checkpoint or tiny(), config)


@dataclass(frozen=True, slots=True)
class Answer:
    """All outputs of one sequence, put together."""

    text: str
    token_ids: tuple[int, ...]
    last: SequenceOutput

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.last.finish_reason

    @property
    def state(self) -> SequenceState:
        assert self.last.state is not None, self.last.error
        return self.last.state


def run(core: EngineCore, *sequences: Sequence) -> dict[str, Answer]:
    """Adds the sequences and steps until nothing is left to do, checking the slots after every step."""
    for sequence in sequences:
        core.add(sequence)
    outputs: list[SequenceOutput] = []
    while core.has_work:
        outputs += core.step()
        core.check_integrity()
    return collect(outputs)


def collect(outputs: list[SequenceOutput]) -> dict[str, Answer]:
    answers = {}
    for sequence_id in dict.fromkeys(output.sequence_id for output in outputs):
        own = [output for output in outputs if output.sequence_id == sequence_id]
        assert all(output.finish_reason is None for output in own[:-1]), "an output came after the last"
        token_ids = tuple(token_id for output in own for token_id in output.token_ids)
        answers[sequence_id] = Answer("".join(output.text for output in own), token_ids, own[-1])
    return answers


def answer(core: EngineCore, sequence: Sequence) -> Answer:
    return run(core, sequence)[sequence.sequence_id]


def assert_same_session(actual: SequenceState, expected: SequenceState, tolerance: float = 1e-9) -> None:
    """The same history exactly, the same tensors within the tolerance (0: the same bits)."""
    assert actual.tokens_digest == expected.tokens_digest
    assert actual.position == expected.position
    assert actual.pending_token_ids == expected.pending_token_ids
    expected_tensors = expected.tensors.named_tensors()
    for name, tensor in actual.tensors.named_tensors().items():
        if tolerance == 0:
            assert torch.equal(tensor, expected_tensors[name]), name
        else:
            torch.testing.assert_close(tensor, expected_tensors[name], rtol=tolerance, atol=tolerance, msg=name)


def prompt(text: str) -> list[int]:
    """A session's first turn."""
    tokenizer, chat_format = tiny().tokenizer, tiny().chat_format
    return [
        *chat_format.session_start(tokenizer),
        *chat_format.message(tokenizer, "user", text),
        *chat_format.generation_prompt(tokenizer),
    ]


def checkpoint_that_says(pieces: Collection[bytes]) -> Checkpoint:
    """The tiny model, writing hardly anything but the given pieces: they and the special tokens are moved one way along
    a direction, the others the other way, so that whoever has read one of the former writes one of them."""
    model, tokenizer = copy.deepcopy(tiny().model), tiny().tokenizer
    direction = torch.ones_like(model.embedding.weight[0])
    for token_id in range(tokenizer.vocab_size):
        data = tokenizer.decode_bytes(token_id)
        model.embedding.weight[token_id] += direction if not data or data in pieces else -direction
    return dataclasses.replace(tiny(), model=model)


def checkpoint_that_raises_at(token_id: int, error: BaseException) -> Checkpoint:
    """The tiny model, raising `error` whenever any row reads `token_id`."""

    def refuse(token_ids: Tensor) -> None:
        if bool((token_ids == token_id).any()):
            raise error

    return checkpoint_that_first(refuse)


def checkpoint_that_first(does: Callable[[Tensor], None]) -> Checkpoint:
    """The tiny model, which before each step gives the ids that it is going to read, padding included, to `does`."""

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        does(inputs[0])

    model = copy.deepcopy(tiny().model)
    model.embedding.register_forward_pre_hook(before)
    return dataclasses.replace(tiny(), model=model)


def ascii_words() -> set[bytes]:
    """The pieces of the tiny tokenizer that are more than one character."""
    pieces = {tiny().tokenizer.decode_bytes(token_id) for token_id in range(tiny().tokenizer.vocab_size)}
    return {piece for piece in pieces if len(piece) > 1 and piece.isascii()}

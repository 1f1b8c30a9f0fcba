"""One sequence's failure is its own: a device without memory, a sampler that cannot draw, a copy that does not fit."""

import dataclasses
import weakref

import pytest
import torch
from torch import Tensor

from atlas_model.checkpoint import Checkpoint
from engine.errors import AtlasError, EngineOverloaded
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import FinishReason, Sequence
from tests.engine.harness import (
    SMALL,
    Answer,
    answer,
    assert_same_session,
    checkpoint_that_first,
    new_core,
    prompt,
    run,
)

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
# Alike in length, so that they share their batches.
AT_ONCE = dataclasses.replace(SMALL, max_num_batched_tokens=128)
TEXTS = {name: f"the {name} is in the garden" for name in ("owl", "cat", "dog", "hen")}


def out_of_memory(kind: str) -> RuntimeError:
    if kind == "cuda":
        return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**55, dtype=torch.uint8)
    return raised.value


def with_memory_for(num_cells: int, kind: str = "cuda") -> tuple[Checkpoint, list[tuple[int, ...]]]:
    """A model whose device has memory for so many rows times tokens in a step; the shapes that it was asked for. What a
    step that failed had allocated must be gone when the next one begins."""
    shapes: list[tuple[int, ...]] = []
    allocated: list[weakref.ref[Tensor]] = []
    error = type(out_of_memory(kind)), str(out_of_memory(kind))

    def allocate(token_ids: Tensor) -> None:
        assert all(tensor() is None for tensor in allocated), "the step that failed still holds its memory"
        shapes.append(tuple(token_ids.shape))
        tensor = torch.zeros(token_ids.shape)
        allocated[:] = [weakref.ref(tensor)]
        if token_ids.numel() > num_cells:
            raise error[0](error[1])

    return checkpoint_that_first(allocate), shapes


def asked(name: str) -> Sequence:
    return Sequence(name, prompt(TEXTS[name]), GREEDY)


def assert_answered_as_alone(answers: dict[str, Answer]) -> None:
    for name in TEXTS:
        alone = answer(new_core(), asked(name))
        assert answers[name].token_ids == alone.token_ids
        assert_same_session(answers[name].state, alone.state)


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_a_batch_for_which_there_is_no_memory_is_run_in_halves(kind: str) -> None:
    num_tokens = max(len(prompt(text)) for text in TEXTS.values())
    checkpoint, shapes = with_memory_for(2 * num_tokens, kind)
    answers = run(new_core(AT_ONCE, checkpoint), *(asked(name) for name in TEXTS))
    assert shapes[:3] == [(4, num_tokens), (2, num_tokens), (2, num_tokens)]
    assert_answered_as_alone(answers)


def test_a_decode_for_which_there_is_no_memory_is_run_in_halves_of_halves() -> None:
    checkpoint, shapes = with_memory_for(1)
    answers = run(new_core(AT_ONCE, checkpoint), *(asked(name) for name in TEXTS))
    assert_answered_as_alone(answers)
    assert {shape[0] for shape in shapes} == {4, 2, 1}


def test_a_prompt_for_which_there_is_no_memory_is_read_in_shorter_pieces() -> None:
    whole = answer(new_core(), asked("owl"))
    checkpoint, shapes = with_memory_for(5)
    in_pieces = answer(new_core(checkpoint=checkpoint), asked("owl"))
    assert in_pieces.token_ids == whole.token_ids
    assert_same_session(in_pieces.state, whole.state)
    assert max(shape[1] for shape in shapes if len(shape) == 2) > 5


def test_who_does_not_fit_even_alone_is_told_to_come_again_and_the_others_are_served() -> None:
    def refuse(token_ids: Tensor) -> None:
        if bool((token_ids == 299).any()):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    core = new_core(checkpoint=checkpoint_that_first(refuse))
    answers = run(core, *(asked(name) for name in TEXTS if name != "hen"), Sequence("hen", [299] * 20, GREEDY))
    assert isinstance(answers["hen"].last.error, EngineOverloaded)
    assert answers["hen"].last.error.retry_after >= 1
    for name in TEXTS.keys() - {"hen"}:
        assert answers[name].token_ids == answer(new_core(), asked(name)).token_ids
    assert core.num_free_slots + core.stats().num_resident_states == 4


def test_a_draw_that_fails_ends_its_own_sequence_only() -> None:
    """A number that no float can hold, which the tensor of the whole batch's numbers cannot hold either."""
    impossible = SamplingParams(top_k=10**400, top_p=0.5, max_tokens=8)
    sampled = SamplingParams(top_k=5, seed=3, max_tokens=8, ignore_eos=True)
    alone = answer(new_core(), Sequence("cat", prompt(TEXTS["cat"]), sampled))
    answers = run(
        new_core(),
        asked("owl"),
        Sequence("cat", prompt(TEXTS["cat"]), sampled),
        Sequence("dog", prompt(TEXTS["dog"]), impossible),
    )
    assert isinstance(answers["dog"].last.error, AtlasError)
    assert answers["dog"].finish_reason is FinishReason.ERROR
    assert answers["cat"].token_ids == alone.token_ids
    assert answers["owl"].token_ids == answer(new_core(), asked("owl")).token_ids


@pytest.mark.parametrize("leaves_state", [True, False])
def test_a_sequence_that_leaves_no_state_says_the_same_and_leaves_its_slot_zeroed(leaves_state: bool) -> None:
    core = new_core()
    written = answer(core, Sequence("owl", prompt(TEXTS["owl"]), GREEDY, leaves_state=leaves_state))
    assert written.token_ids == answer(new_core(), asked("owl")).token_ids
    assert (written.last.state is not None) == leaves_state
    assert core.num_free_slots == (3 if leaves_state else 4)

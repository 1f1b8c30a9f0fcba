"""A step's delta: written in place it is what `step` returns, and a commit touches the rows whose chunk ends alone."""

from __future__ import annotations

import pytest
import torch

from atlas_model.changes import MANY_ROWS
from atlas_model.config import AtlasConfig
from atlas_model.state import State
from tests.atlas_model.test_model import LAYOUTS, assert_same_state, every_layout, tokens
from tests.tiny import tiny_model

POSITIONS = [0, 3, 4, 9, 14, 17]


def states_at(config: AtlasConfig, positions: list[int]) -> State:
    """One row at each of the positions, all of different tokens."""
    model = tiny_model(config)
    states = []
    for row, position in enumerate(positions):
        state = model.initial_state(1)
        states.append(model(tokens(config, 1, position, seed=row), state).state if position else state)
    return State.concatenate(states)


def is_equal(a: State, b: State) -> bool:
    others = b.named_tensors()
    return all(torch.equal(tensor, others[name]) for name, tensor in a.named_tensors().items())


@every_layout
def test_a_delta_written_in_place_gives_the_state_that_step_returns(config: AtlasConfig) -> None:
    model, state = tiny_model(config), states_at(config, POSITIONS)
    ids = torch.arange(len(POSITIONS))
    expected_logits, expected = model.step(ids, state)
    before, mine = state.clone(), state.clone()
    logits, delta = model.step_delta(ids, mine)
    delta = model.commit(delta, mine, POSITIONS)
    assert is_equal(mine, before)
    delta.write(mine.named_tensors())
    assert torch.equal(logits, expected_logits)
    assert is_equal(mine, expected)


@every_layout
def test_a_commit_of_some_rows_leaves_the_memories_of_the_others_bit_equal(config: AtlasConfig) -> None:
    model, state = tiny_model(config), states_at(config, POSITIONS)
    _, after = model.step(torch.arange(len(POSITIONS)), state)
    sizes = [mixer.memory.config.memory_chunk_size for mixer in model.mixers]
    old, new = state.named_tensors(), after.named_tensors()
    for name in old:
        if ".memory." in name or ".momentum." in name:
            size = sizes[int(name.split(".")[1])]
            changed = [not torch.equal(old[name][row], new[name][row]) for row in range(len(POSITIONS))]
            assert changed == [(position + 1) % size == 0 for position in POSITIONS], name


@every_layout
def test_a_row_whose_chunk_ends_is_the_same_whoever_else_is_in_the_batch(config: AtlasConfig) -> None:
    model, state = tiny_model(config), states_at(config, POSITIONS)
    _, together = model.step(torch.arange(len(POSITIONS)), state)
    for row in range(len(POSITIONS)):
        pick = torch.tensor([row])
        _, alone = model.step(pick, state.gather(pick))
        assert_same_state(together.gather(pick), alone)


@every_layout
def test_many_rows_step_as_few_do(config: AtlasConfig) -> None:
    """From MANY_ROWS on the tails of the convolutions are read and moved in another way."""
    model = tiny_model(config)
    few = states_at(config, POSITIONS)
    many = State.concatenate([few] * (MANY_ROWS // len(POSITIONS) + 1))
    ids = torch.arange(many.batch_size) % 7
    logits, after = model.step(ids, many)
    for start in range(0, many.batch_size, len(POSITIONS)):
        rows = torch.arange(start, start + len(POSITIONS))
        expected_logits, expected = model.step(ids[rows], few)
        torch.testing.assert_close(logits[rows], expected_logits, rtol=1e-9, atol=1e-9)
        assert_same_state(after.gather(rows), expected)


def test_a_delta_names_what_is_not_what_it_was_and_nothing_else() -> None:
    """Of a row in the middle of its chunk neither memory nor momentum: nearly all of a state is not even copied."""
    config = LAYOUTS["mag-chunk-read"]
    model, state = tiny_model(config), states_at(config, [2])
    _, delta = model.step_delta(torch.tensor([1]), state)
    delta = model.commit(delta, state, [2])
    after = state.apply(delta).named_tensors()
    shared = {name for name, tensor in state.named_tensors().items() if tensor is after[name]}
    assert shared == set(after) - delta.names
    assert {name.split(".", 2)[-1] for name in shared} == {"memory.w", "momentum.w"}


@pytest.mark.parametrize("start", range(13))
def test_steps_and_prefill_lay_the_same_ring_wherever_it_wraps(start: int) -> None:
    """A window of 7 is a ring of 6 places: every offset, by steps alone, by prefill alone and one after the other."""
    config = LAYOUTS["mag"]
    model = tiny_model(config)
    ids = tokens(config, 1, start + 8)
    whole = model(ids).state
    state = model(ids[:, :start]).state if start else model.initial_state(1)
    for at in range(start, start + 8):
        _, state = model.step(ids[:, at], state)
    assert_same_state(state, whole)
    window = whole.layers[0].attention
    assert window is not None
    place = (start + 7) % 6
    newest = model(ids[:, start + 7 :], model(ids[:, : start + 7]).state).state.layers[0].attention
    assert newest is not None
    torch.testing.assert_close(newest.keys[:, :, place], window.keys[:, :, place], rtol=1e-9, atol=1e-9)

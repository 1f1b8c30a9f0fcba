import math

import pytest
import torch

from atlas_model.state import State
from engine.state_pool import StatePool, diverged_tensor
from tests.tiny import tiny_checkpoint

CPU = torch.device("cpu")


def random_states(num_rows: int, seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    model = tiny_checkpoint().model
    tensors = {
        name: torch.rand(tensor.shape, generator=generator, dtype=torch.float64).mul(9).to(tensor.dtype)
        for name, tensor in model.initial_state(num_rows).named_tensors().items()
    }
    return State.from_named_tensors(model.config, tensors)


def row(state: State, index: int) -> State:
    return state.gather(torch.tensor([index]))


def pool(num_slots: int = 4) -> StatePool:
    return StatePool(tiny_checkpoint().model.config, num_slots, CPU)


def is_equal(a: State, b: State) -> bool:
    others = b.named_tensors()
    return all(torch.equal(tensor, others[name]) for name, tensor in a.named_tensors().items())


def test_what_was_loaded_comes_out_with_the_same_bits_and_only_from_its_own_slot() -> None:
    slots, states = pool(), random_states(2)
    first, second = slots.acquire(), slots.acquire()
    slots.load(first, row(states, 0))
    slots.load(second, row(states, 1))
    assert is_equal(slots.export(first), row(states, 0))
    assert is_equal(slots.export(second), row(states, 1))


def test_an_exported_state_does_not_follow_its_slot() -> None:
    slots, states = pool(), random_states(2)
    slot = slots.acquire()
    slots.load(slot, row(states, 0))
    exported, copied = slots.export(slot), slots.copy(slot)
    slots.load(slot, row(states, 1))
    assert is_equal(exported, row(states, 0))
    assert is_equal(copied, row(states, 0))


def test_rows_are_gathered_and_scattered_in_the_order_of_the_slots() -> None:
    slots, states = pool(), random_states(3)
    slots.scatter([3, 0, 2], states)
    assert is_equal(slots.gather([3, 0, 2]), states)
    assert is_equal(slots.export(0), row(states, 1))
    assert slots.is_zeroed(1)


def test_a_released_slot_is_zeroed_and_can_be_taken_again() -> None:
    slots, states = pool(1), random_states(1)
    slot = slots.acquire()
    assert slots.num_free == 0
    slots.load(slot, states)
    assert not slots.is_zeroed(slot)
    slots.release(slot)
    assert slots.is_zeroed(slot)
    assert slots.acquire() == slot


def test_a_state_that_does_not_fit_is_refused_before_anything_is_written() -> None:
    slots = pool()
    with pytest.raises(AssertionError):
        slots.load(0, random_states(2))
    single = tiny_checkpoint(dtype=torch.float32).model.initial_state(1)
    with pytest.raises(AssertionError):
        slots.load(0, single)
    assert slots.is_zeroed(0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e7])
def test_a_tensor_that_is_not_finite_or_too_large_is_named(value: float) -> None:
    states = random_states(1)
    assert diverged_tensor(states, max_norm=1e6) is None
    name, tensor = next((name, each) for name, each in states.named_tensors().items() if "layers.1.memory" in name)
    tensor.view(-1)[1] = value
    assert diverged_tensor(states, max_norm=1e6) == name

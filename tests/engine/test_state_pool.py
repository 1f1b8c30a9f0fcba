import math

import pytest
import torch

from atlas_model.state import State
from engine.device.state_pool import StatePool, diverged_tensor
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


def row_order(state: State, order: list[int]) -> State:
    return state.gather(torch.tensor(order))


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


@pytest.mark.parametrize("slots_in_order", [[3, 0, 2], [1, 2, 3], [2, 1, 0]])
def test_rows_are_written_and_read_in_the_order_of_the_slots(slots_in_order: list[int]) -> None:
    slots, states = pool(), random_states(3)
    slots.write(slots_in_order, states, read=slots.read(slots_in_order))
    assert is_equal(slots.read(slots_in_order), states)
    for index, slot in enumerate(slots_in_order):
        assert is_equal(slots.export(slot), row(states, index))
    assert slots.is_zeroed(({0, 1, 2, 3} - set(slots_in_order)).pop())


@pytest.mark.parametrize("slots_in_order", [[0, 2], [1, 2]])
def test_a_step_may_return_what_it_read_and_views_of_it(slots_in_order: list[int]) -> None:
    slots, states = pool(), random_states(2)
    slots.write(slots_in_order, states, read=slots.read(slots_in_order))
    read = slots.read(slots_in_order)
    slots.write(slots_in_order, read, read=read)
    assert is_equal(slots.read(slots_in_order), states)
    # The rows swapped, through views of the very rows that are written.
    read = slots.read(slots_in_order)
    slots.write(slots_in_order, read.map(lambda tensor: tensor.flip(0)), read=read)
    assert is_equal(slots.read(slots_in_order), row_order(states, [1, 0]))


@pytest.mark.parametrize("to_slots", [[1, 2, 3], [3, 1, 2]])
def test_rows_that_are_views_of_other_rows_are_written_as_they_were(to_slots: list[int]) -> None:
    slots, states = pool(), random_states(4)
    slots.write([0, 1, 2, 3], states, read=slots.read([0, 1, 2, 3]))
    slots.write(to_slots, slots.read([0, 1, 2]), read=slots.read(to_slots))
    assert is_equal(slots.read(to_slots), row_order(states, [0, 1, 2]))


@pytest.mark.parametrize("together", [[0, 2], [3, 0], [1, 3, 4], [5], [0, 1, 2, 3, 4, 5], [4, 2, 0]])
def test_slots_that_are_brought_together_are_read_without_a_copy_and_nothing_is_mixed_up(together: list[int]) -> None:
    slots, states = pool(6), random_states(6)
    for index in range(6):
        slots.load(slots.acquire(), row(states, index))
    ordered = slots.bring_together(together)
    assert sorted(ordered) == sorted(together)
    assert [slots.row(slot) for slot in ordered] == list(
        range(slots.row(ordered[0]), slots.row(ordered[0]) + len(ordered))
    )
    one, other = slots.read(ordered).named_tensors(), slots.read(ordered[:1]).named_tensors()
    assert all(tensor.data_ptr() == other[name].data_ptr() for name, tensor in one.items())
    assert is_equal(slots.read(ordered), row_order(states, ordered))
    for slot in range(6):
        assert is_equal(slots.export(slot), row(states, slot))
    slots.check_integrity(range(6))
    assert slots.bring_together(together) == ordered


def test_a_set_that_has_lost_one_slot_and_won_another_moves_two_pairs_of_rows_at_most() -> None:
    slots, states = pool(6), random_states(6)
    for index in range(6):
        slots.load(slots.acquire(), row(states, index))
    slots.bring_together([0, 1, 2, 3])
    rows = [slots.row(slot) for slot in range(6)]
    slots.bring_together([0, 2, 3])
    slots.bring_together([0, 2, 3, 5])
    assert sum(before != slots.row(slot) for slot, before in enumerate(rows)) <= 4


def test_a_resident_row_and_a_free_one_stay_what_they_are_when_others_are_brought_together() -> None:
    slots, states = pool(5), random_states(3)
    first, resident, free, second = (slots.acquire() for _ in range(4))
    slots.load(first, row(states, 0))
    slots.load(resident, row(states, 1))
    slots.load(second, row(states, 2))
    exported = slots.export(resident)
    slots.keep(resident, exported)
    slots.release(free)
    slots.bring_together([first, second])
    slots.check_integrity([first, second])
    assert slots.resume(exported, is_shared=False) == resident
    assert is_equal(slots.export(resident), row(states, 1))
    assert slots.is_zeroed(free)


def test_the_lowest_free_slot_is_taken_first() -> None:
    slots = pool()
    assert [slots.acquire() for _ in range(4)] == [0, 1, 2, 3]
    for slot in (2, 0, 3):
        slots.release(slot)
    assert [slots.acquire() for _ in range(3)] == [0, 2, 3]


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

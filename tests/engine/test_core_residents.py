"""States that stay in their slots: what goes on from one is the same bit for bit, and nobody else ever sees it."""

import dataclasses
import gc

import pytest
import torch

from engine.config import EngineConfig
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import Sequence, SequenceState, Tier
from tests.engine.harness import Answer, answer, assert_same_session, new_core, prompt, run
from tests.tiny import tiny_checkpoint

GREEDY = SamplingParams(temperature=0, max_tokens=6)
ENDLESS = SamplingParams(temperature=0, max_tokens=100_000, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1.0, seed=5, max_tokens=12, ignore_eos=True)
MORE = prompt("and the cat?")[1:]


def reread(state: SequenceState) -> SequenceState:
    """What a store would load: other objects, the same bits."""
    return dataclasses.replace(state, tensors=state.tensors.clone())


def tier_of(answered: Answer) -> Tier:
    resume = answered.last.resume
    assert resume is not None
    assert resume.seconds >= 0
    return resume.tier


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("is_shared", [False, True])
def test_what_goes_on_from_the_slot_is_what_goes_on_from_the_snapshot(dtype: torch.dtype, is_shared: bool) -> None:
    """Row 6: the tokens, and the bits of the state after two more turns, whichever way each began."""
    checkpoint = tiny_checkpoint(dtype=dtype)
    near, far = new_core(checkpoint=checkpoint), new_core(checkpoint=checkpoint)
    first = answer(near, Sequence("first", prompt("where is the ball?"), SAMPLED)).state
    here, there = first, reread(first)
    for turn in ("second", "third"):
        on_device = answer(near, Sequence(turn, MORE, SAMPLED, here, shares_state=is_shared))
        from_bytes = answer(far, Sequence(turn, MORE, SAMPLED, there))
        assert (tier_of(on_device), tier_of(from_bytes)) == (Tier.DEVICE, Tier.HOST)
        assert on_device.token_ids == from_bytes.token_ids
        assert_same_session(on_device.state, from_bytes.state, tolerance=0)
        here, there = on_device.state, reread(from_bytes.state)


def test_a_state_of_another_engine_or_of_equal_bits_is_not_taken_for_the_resident_one() -> None:
    core, other = new_core(), new_core()
    first = answer(core, Sequence("first", prompt("hello"), GREEDY)).state
    answer(other, Sequence("first", prompt("hello"), GREEDY))
    assert tier_of(answer(other, Sequence("elsewhere", MORE, GREEDY, first))) is Tier.HOST
    assert tier_of(answer(core, Sequence("loaded", MORE, GREEDY, reread(first)))) is Tier.HOST
    # A state made from this one by changing its tensors is another state.
    changed = dataclasses.replace(first, tensors=first.tensors.map(lambda tensor: tensor * 2))
    assert tier_of(answer(core, Sequence("changed", MORE, GREEDY, changed))) is Tier.HOST
    assert tier_of(answer(core, Sequence("itself", MORE, GREEDY, first))) is Tier.DEVICE


def test_a_writer_takes_the_row_and_readers_copy_it() -> None:
    core = new_core()
    first = answer(core, Sequence("first", prompt("hello"), GREEDY)).state
    readers = [Sequence(f"reader {n}", MORE, GREEDY, first, shares_state=True) for n in range(3)]
    answers = run(core, *readers)
    assert {tier_of(each) for each in answers.values()} == {Tier.DEVICE}
    assert len({each.token_ids for each in answers.values()}) == 1
    assert tier_of(answer(core, Sequence("writer", MORE, GREEDY, first))) is Tier.DEVICE
    # The writer's state stands where the one before was.
    assert tier_of(answer(core, Sequence("late", MORE, GREEDY, first))) is Tier.HOST


def test_more_readers_than_slots_use_the_row_while_it_is_there_and_answer_alike() -> None:
    core = new_core()
    first = answer(core, Sequence("first", prompt("hello"), GREEDY)).state
    readers = [Sequence(f"reader {n}", MORE, GREEDY, first, shares_state=True) for n in range(6)]
    answers = run(core, *readers)
    tiers = [tier_of(answers[reader.sequence_id]) for reader in readers]
    assert tiers == [Tier.DEVICE] * 4 + [Tier.HOST] * 2
    assert len({each.token_ids for each in answers.values()}) == 1


def test_the_least_recently_used_state_makes_room() -> None:
    core = new_core(EngineConfig(max_num_sequences=2, max_num_waiting=2))
    a = answer(core, Sequence("a", prompt("one"), GREEDY)).state
    b = answer(core, Sequence("b", prompt("two"), GREEDY)).state
    assert core.stats().num_resident_states == 2
    a = answer(core, Sequence("a", MORE, GREEDY, a)).state
    c = answer(core, Sequence("c", prompt("three"), GREEDY)).state
    assert (core.stats().num_resident_states, core.stats().num_slots_in_use) == (2, 0)
    assert tier_of(answer(core, Sequence("a", MORE, GREEDY, a))) is Tier.DEVICE
    assert tier_of(answer(core, Sequence("b", MORE, GREEDY, b))) is Tier.HOST
    assert c.position > 0


def test_a_slot_that_held_a_secret_gives_nothing_of_it_to_the_next() -> None:
    """Row 9, with the secret's state resident in the only slot there is, and with every end of its sequence."""
    expected = answer(new_core(), Sequence("next", prompt("what is the code?"), SAMPLED))
    core = new_core(EngineConfig(max_num_sequences=1))
    secret = answer(core, Sequence("secret", prompt("the code is 4 7 1"), SAMPLED)).state
    assert core.stats().num_resident_states == 1
    assert core.num_free_slots == 0
    after = answer(core, Sequence("next", prompt("what is the code?"), SAMPLED))
    assert after.token_ids == expected.token_ids
    assert_same_session(after.state, expected.state, tolerance=0)
    # A state that does not fit fails in the slot where the secret is resident.
    secret = answer(core, Sequence("secret", MORE, SAMPLED, secret)).state
    foreign = SequenceState(tiny_checkpoint(dtype=torch.float32).model.initial_state(1), b"")
    assert answer(core, Sequence("foreign", [9], SAMPLED, foreign)).last.error is not None
    assert core.num_free_slots == 1
    assert_same_session(answer(core, Sequence("next", prompt("what is the code?"), SAMPLED)).state, expected.state, 0)
    assert secret.position > 0


@pytest.mark.parametrize("num_steps", [1, 3])
def test_an_aborted_sequence_leaves_its_slot_zeroed_and_its_start_on_the_host(num_steps: int) -> None:
    core = new_core()
    first = answer(core, Sequence("first", prompt("hello"), GREEDY)).state
    expected = answer(new_core(), Sequence("again", MORE, GREEDY, reread(first)))
    core.add(Sequence("aborted", MORE, ENDLESS, first))
    for _ in range(num_steps):
        core.step()
    core.abort("aborted")
    core.check_integrity()
    assert core.num_free_slots == 4
    again = answer(core, Sequence("again", MORE, GREEDY, first))
    assert tier_of(again) is Tier.HOST
    assert_same_session(again.state, expected.state, tolerance=0)


def test_a_state_that_nobody_holds_any_more_has_no_slot_after_the_next_step() -> None:
    core = new_core()
    state: SequenceState | None = answer(core, Sequence("first", prompt("hello"), GREEDY)).state
    assert core.stats().num_resident_states == 1
    assert state is not None
    state = None
    gc.collect()
    assert core.stats().num_resident_states == 0
    core.step()
    assert core.num_free_slots == 4
    core.check_integrity()


def test_a_state_that_is_forgotten_has_no_slot_and_can_still_be_gone_on_from() -> None:
    core = new_core()
    first = answer(core, Sequence("first", prompt("hello"), GREEDY)).state
    other = answer(core, Sequence("other", prompt("hello"), GREEDY)).state
    core.forget(first)
    core.forget(first)
    assert (core.num_free_slots, core.stats().num_resident_states) == (3, 1)
    core.check_integrity()
    assert tier_of(answer(core, Sequence("again", MORE, GREEDY, first))) is Tier.HOST
    assert tier_of(answer(core, Sequence("more", MORE, GREEDY, other))) is Tier.DEVICE


def test_a_slot_whose_row_is_not_its_state_is_noticed() -> None:
    core = new_core()
    state = answer(core, Sequence("first", prompt("hello"), GREEDY)).state
    name = next(name for name in state.tensors.named_tensors() if "memory" in name)
    with torch.inference_mode():
        state.tensors.named_tensors()[name].view(-1)[0] += 1
    with pytest.raises(AssertionError, match="not the state"):
        core.check_integrity()

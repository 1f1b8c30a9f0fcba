"""The core on a tiny float64 model: what is generated, what is left behind, and what happens when things go wrong."""

import dataclasses
import functools
import math
from typing import Any

import pytest
import torch

from atlas_model.checkpoint import Checkpoint
from atlas_model.config import AttentionConfig
from atlas_model.state import State
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import AtlasError, Draining, EmptyPrompt, InvalidRequest, MemoryDiverged, QueueFull
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import FinishReason, Sequence, SequenceOutput, SequenceState
from engine.snapshots.tokens_digest import INITIAL_DIGEST, extend_digest
from tests.engine.harness import (
    SMALL,
    Answer,
    answer,
    ascii_words,
    assert_same_session,
    checkpoint_that_raises_at,
    checkpoint_that_says,
    collect,
    new_core,
    prompt,
    run,
    tiny,
)
from tests.tiny import tiny_checkpoint

PROMPTS = {"short": "hello", "longer": "where is the ball? " * 3, "longest": "the owl sat on the tower\n" * 5}
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def asked(name: str, params: SamplingParams | None = GREEDY) -> Sequence:
    return Sequence(name, prompt(PROMPTS[name]), params)


def writable_token_ids() -> list[int]:
    tokenizer = tiny().tokenizer
    return [token_id for token_id in range(tokenizer.vocab_size) if tokenizer.decode_bytes(token_id)]


def with_value(state: SequenceState, name: str, value: float) -> SequenceState:
    """The state with one number of one tensor replaced."""
    tensors = {key: tensor.clone() for key, tensor in state.tensors.named_tensors().items()}
    tensors[name].view(-1)[0] = value
    return dataclasses.replace(state, tensors=State.from_named_tensors(tiny().model.config, tensors))


def test_greedy_writes_what_one_full_forward_says() -> None:
    written = answer(new_core(), asked("longer"))
    fed = prompt(PROMPTS["longer"])
    logits = tiny().model(torch.tensor([[*fed, *written.token_ids]])).logits[0]
    writable = writable_token_ids()
    for index, token_id in enumerate(written.token_ids):
        assert token_id == writable[int(logits[len(fed) + index - 1, writable].argmax())]
    assert written.last.num_prompt_tokens == len(fed)
    assert written.last.num_generated_tokens == len(written.token_ids) == 12


def test_length_leaves_the_last_token_and_end_pending_and_has_fed_the_others() -> None:
    written = answer(new_core(), asked("short"))
    assert written.finish_reason is FinishReason.LENGTH
    fed = [*prompt(PROMPTS["short"]), *written.token_ids[:-1]]
    assert written.state.pending_token_ids == (written.token_ids[-1], tiny().tokenizer.special.end)
    assert written.state.tokens_digest == extend_digest(INITIAL_DIGEST, fed)
    assert written.state.position == len(fed)


@functools.cache
def talker() -> Checkpoint:
    """A model that says some thirty words and, about as often as any of them, `<end>`."""
    return checkpoint_that_says(ascii_words())


@functools.cache
def params_that_end() -> SamplingParams:
    """With them, the talker says `<end>` by itself, after some tokens."""
    for seed in range(100):
        params = SamplingParams(seed=seed, max_tokens=20)
        written = answer(new_core(checkpoint=talker()), asked("short", params))
        if written.finish_reason is FinishReason.STOP and len(written.token_ids) > 2:
            return params
    raise AssertionError("the talker never ends")


def test_end_leaves_itself_pending_and_is_no_token_of_the_answer() -> None:
    written = answer(new_core(checkpoint=talker()), asked("short", params_that_end()))
    assert written.finish_reason is FinishReason.STOP
    fed = [*prompt(PROMPTS["short"]), *written.token_ids]
    assert written.state.pending_token_ids == (tiny().tokenizer.special.end,)
    assert written.state.tokens_digest == extend_digest(INITIAL_DIGEST, fed)
    assert written.text == tiny().tokenizer.decode(written.token_ids)
    assert written.last.num_generated_tokens == len(written.token_ids)


def test_what_an_answer_opens_with_is_fed_and_is_no_part_of_it() -> None:
    params = params_that_end()
    plain = answer(new_core(checkpoint=talker()), asked("short", params))
    opened = Sequence("short", prompt(PROMPTS["short"]), params, opening=plain.text[0].encode())
    written = answer(new_core(checkpoint=talker()), opened)
    assert written.text == plain.text[1:] != ""
    assert written.token_ids == plain.token_ids
    assert_same_session(written.state, plain.state)


@pytest.mark.parametrize("later", [{"min_tokens": 20}, {"ignore_eos": True}])
def test_min_tokens_and_ignore_eos_make_the_model_go_on_where_it_would_have_ended(later: dict[str, Any]) -> None:
    params = dataclasses.replace(params_that_end(), **later)
    went_on = answer(new_core(checkpoint=talker()), asked("short", params))
    assert went_on.finish_reason is FinishReason.LENGTH
    assert len(went_on.token_ids) == 20


def test_an_answer_holds_only_tokens_that_write_something() -> None:
    """The talker would say `<user>` as readily as any word."""
    params = SamplingParams(max_tokens=60, ignore_eos=True, seed=1)
    written = answer(new_core(checkpoint=talker()), asked("short", params))
    assert len(written.token_ids) == 60
    assert set(written.token_ids) <= set(writable_token_ids())


def test_a_row_in_any_batch_writes_and_learns_what_it_does_alone() -> None:
    alone = {name: answer(new_core(), asked(name)) for name in PROMPTS}
    together = run(new_core(), *(asked(name) for name in PROMPTS))
    backwards = run(new_core(), *(asked(name) for name in reversed(PROMPTS)))
    for name in PROMPTS:
        for other in (together[name], backwards[name]):
            assert other.token_ids == alone[name].token_ids
            assert other.text == alone[name].text
            assert_same_session(other.state, alone[name].state)


def test_more_sequences_than_slots_all_end_as_they_would_alone() -> None:
    names = [f"{name}-{copy}" for copy in range(3) for name in PROMPTS]
    sequences = [Sequence(name, prompt(PROMPTS[name.split("-")[0]]), GREEDY) for name in names]
    answers = run(new_core(), *sequences)
    for name in names:
        assert answers[name].token_ids == answers[f"{name.split('-')[0]}-0"].token_ids


def test_a_seeded_answer_is_the_same_alone_among_neighbours_and_after_a_resume() -> None:
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=11, max_tokens=20)
    alone = answer(new_core(), asked("longer", params))
    others = [asked(name, SamplingParams(seed=3, max_tokens=20)) for name in ("short", "longest")]
    assert run(new_core(), *others, asked("longer", params))["longer"].token_ids == alone.token_ids
    # The same prompt, its first half read by another engine.
    fed = prompt(PROMPTS["longer"])
    half = answer(new_core(), Sequence("half", fed[:10])).state
    assert answer(new_core(), Sequence("rest", fed[10:], params, half)).token_ids == alone.token_ids
    # And its answer, taken up in the middle.
    middle = answer(new_core(), Sequence("middle", [*fed, *alone.token_ids[:7]], params)).token_ids
    assert middle[:13] == alone.token_ids[7:]
    other_seed = dataclasses.replace(params, seed=12)
    assert answer(new_core(), asked("longer", other_seed)).token_ids != alone.token_ids


def test_without_a_seed_two_answers_differ() -> None:
    params = SamplingParams(temperature=2.0, max_tokens=20, ignore_eos=True)
    core = new_core()
    assert answer(core, asked("short", params)).token_ids != answer(core, asked("short", params)).token_ids


@pytest.mark.parametrize("layout", ["lmm", "mag", "mal", "mac", "swa"])
def test_a_state_of_any_layout_that_went_through_bytes_goes_on_with_the_same_bits(layout: str) -> None:
    attention = None if layout == "lmm" else AttentionConfig(num_heads=2, window=10)
    checkpoint = tiny_checkpoint(layout=layout, attention=attention)
    first = answer(new_core(checkpoint=checkpoint), asked("longer")).state
    # Row 6 end to end is the snapshot's test; here the tensors travel as bytes.
    rebuilt = {
        name: torch.frombuffer(bytearray(tensor.numpy().tobytes()), dtype=tensor.dtype).reshape(tensor.shape)
        for name, tensor in first.tensors.named_tensors().items()
    }
    resumed = dataclasses.replace(first, tensors=State.from_named_tensors(checkpoint.model.config, rebuilt))
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=12, ignore_eos=True)
    more = prompt("and the cat?")[1:]
    uninterrupted = answer(new_core(checkpoint=checkpoint), Sequence("live", more, params, first))
    restored = answer(new_core(checkpoint=checkpoint), Sequence("restored", more, params, resumed))
    assert restored.token_ids == uninterrupted.token_ids
    assert_same_session(restored.state, uninterrupted.state, tolerance=0)


def test_two_turns_equal_one_run_over_the_concatenated_tokens() -> None:
    core = new_core()
    first = answer(core, asked("longer"))
    more = prompt("and the cat?")[1:]
    second = answer(core, Sequence("second", more, GREEDY, first.state))
    fed = [*prompt(PROMPTS["longer"]), *first.token_ids, tiny().tokenizer.special.end]
    whole = answer(core, Sequence("whole", [*fed, *more, *second.token_ids[:-1]]))
    expected = dataclasses.replace(whole.state, pending_token_ids=second.state.pending_token_ids)
    assert_same_session(second.state, expected)
    assert second.last.num_prompt_tokens == 2 + len(more)


def test_a_feed_ends_with_stop_with_nothing_pending_and_does_not_depend_on_its_pieces() -> None:
    token_ids = prompt(PROMPTS["longest"]) * 3
    whole = answer(new_core(), Sequence("feed", token_ids))
    assert whole.finish_reason is FinishReason.STOP
    assert (whole.text, whole.token_ids, whole.state.pending_token_ids) == ("", (), ())
    in_pieces = answer(new_core(dataclasses.replace(SMALL, max_num_piece_tokens=7)), Sequence("feed", token_ids))
    assert_same_session(in_pieces.state, whole.state)
    state = None
    for start in range(0, len(token_ids), 50):
        state = answer(new_core(), Sequence("feed", token_ids[start : start + 50], state=state)).state
    assert state is not None
    assert_same_session(state, whole.state)


def test_nobody_waits_for_the_end_of_a_long_feed() -> None:
    core = new_core(dataclasses.replace(SMALL, max_num_interleaved_tokens=16))
    core.add(asked("short"))
    core.step()
    core.add(Sequence("book", [20] * 600))
    outputs: list[SequenceOutput] = []
    num_steps = 0
    while not outputs or outputs[-1].finish_reason is None:
        before = core.stats().iteration_tokens.total
        outputs += core.step()
        assert core.stats().iteration_tokens.total - before <= 16
        num_steps += 1
    # The first token came before; then one decode step in two.
    assert num_steps == 2 * (GREEDY.max_tokens - 1) - 1
    reader = collect(outputs)["short"]
    assert reader.finish_reason is FinishReason.LENGTH
    assert run(core)["book"].finish_reason is FinishReason.STOP


def abort_after(core: EngineCore, sequence_id: str, num_steps: int) -> Answer:
    outputs = []
    for _ in range(num_steps):
        outputs += core.step()
    core.abort(sequence_id)
    core.check_integrity()
    core.abort(sequence_id)
    outputs += core.step()
    core.check_integrity()
    return collect(outputs)[sequence_id]


@pytest.mark.parametrize("num_steps", [0, 1, 4, 5, 9])
def test_an_abort_in_any_phase_frees_the_slot_at_once_and_says_so(num_steps: int) -> None:
    """Before the first step, in prefill (four pieces), at the first token, in decode."""
    core = new_core()
    core.add(Sequence("book", [9] * 120, GREEDY))
    aborted = abort_after(core, "book", num_steps)
    assert aborted.finish_reason is FinishReason.ABORT
    assert aborted.last.state is None
    assert (core.num_free_slots, core.has_work) == (4, False)


def test_an_abort_while_waiting_frees_the_place_in_the_queue() -> None:
    core = new_core(EngineConfig(max_num_sequences=1, max_num_waiting=1))
    core.add(asked("short"))
    core.step()
    core.add(asked("longer"))
    core.abort("longer")
    core.add(asked("longest"))
    answers = run(core)
    assert answers["longer"].finish_reason is FinishReason.ABORT
    assert answers["short"].finish_reason is answers["longest"].finish_reason is FinishReason.LENGTH


def test_an_abort_leaves_the_neighbours_answers_as_they_were() -> None:
    alone = answer(new_core(), asked("longest"))
    core = new_core()
    core.add(asked("longest"))
    core.add(asked("short"))
    outputs = core.step() + core.step() + core.step()
    core.abort("short")
    while core.has_work:
        outputs += core.step()
    assert collect(outputs)["longest"].token_ids == alone.token_ids


def test_a_queue_that_is_full_refuses_and_keeps_nothing() -> None:
    core = new_core(EngineConfig(max_num_sequences=1, max_num_waiting=0))
    core.add(asked("short"))
    with pytest.raises(QueueFull):
        core.add(asked("longer"))
    assert set(run(core)) == {"short"}


def test_ids_that_the_model_does_not_have_are_refused() -> None:
    core = new_core()
    for token_id in (-1, tiny().model.config.vocab_size):
        with pytest.raises(InvalidRequest):
            core.add(Sequence("odd", [5, token_id]))
    with pytest.raises(EmptyPrompt):
        Sequence("empty", [], GREEDY)
    assert not core.has_work


def test_one_name_cannot_run_twice_at_once() -> None:
    core = new_core()
    core.add(asked("short"))
    with pytest.raises(InvalidRequest):
        core.add(asked("short"))


def test_a_sequence_that_breaks_a_prefill_batch_fails_alone() -> None:
    expected = answer(new_core(), asked("short"))
    cause = ValueError("broken")
    core = new_core(checkpoint=checkpoint_that_raises_at(299, cause))
    answers = run(core, asked("short"), Sequence("culprit", [299] * 9, GREEDY))
    assert answers["culprit"].finish_reason is FinishReason.ERROR
    error = answers["culprit"].last.error
    assert isinstance(error, AtlasError)
    assert error.__cause__ is cause
    assert answers["short"].token_ids == expected.token_ids
    assert_same_session(answers["short"].state, expected.state)


def test_a_sequence_that_breaks_a_decode_batch_fails_alone() -> None:
    written = {name: answer(new_core(), asked(name)).token_ids for name in PROMPTS}
    name, token_id = next(
        (name, token_id)
        for name, token_ids in written.items()
        for token_id in token_ids[1:-1]
        if not any(token_id in others for other, others in written.items() if other != name)
        and not any(token_id in prompt(text) for text in PROMPTS.values())
    )
    checkpoint = checkpoint_that_raises_at(token_id, ValueError("broken"))
    answers = run(new_core(checkpoint=checkpoint), *(asked(each) for each in PROMPTS))
    assert answers[name].finish_reason is FinishReason.ERROR
    for other in PROMPTS.keys() - {name}:
        assert answers[other].token_ids == written[other]


def test_a_state_that_is_not_finite_ends_its_own_sequence_and_names_the_layer() -> None:
    healthy = answer(new_core(), asked("longer")).state
    name = next(name for name in healthy.tensors.named_tensors() if name.startswith("layers.0.memory"))
    expected = answer(new_core(), asked("short"))
    answers = run(new_core(), Sequence("sick", [9], GREEDY, with_value(healthy, name, math.nan)), asked("short"))
    error = answers["sick"].last.error
    assert isinstance(error, MemoryDiverged)
    assert error.layer.startswith("layers.0.")
    assert answers["sick"].last.state is None
    assert answers["short"].token_ids == expected.token_ids


def test_a_memory_that_grew_beyond_its_bound_is_never_handed_out() -> None:
    core = new_core(dataclasses.replace(SMALL, max_state_norm=1e-3))
    failed = answer(core, Sequence("feed", prompt(PROMPTS["short"])))
    assert isinstance(failed.last.error, MemoryDiverged)
    assert failed.last.state is None


def test_a_state_of_another_shape_fails_its_own_sequence_only() -> None:
    foreign = tiny_checkpoint(dtype=torch.float32).model.initial_state(1)
    answers = run(new_core(), Sequence("foreign", [9], GREEDY, SequenceState(foreign, b"")), asked("short"))
    assert answers["foreign"].finish_reason is FinishReason.ERROR
    assert answers["short"].finish_reason is FinishReason.LENGTH


def test_cut_short_ends_writers_with_length_and_a_state_and_the_others_with_draining() -> None:
    core = new_core()
    core.add(asked("short"))
    outputs = core.step() + core.step() + core.step()
    core.add(Sequence("book", [9] * 500))
    outputs += core.step()
    core.cut_short()
    core.check_integrity()
    answers = collect(outputs + core.step())
    written = answers["short"]
    assert written.finish_reason is FinishReason.LENGTH
    assert 0 < len(written.token_ids) < GREEDY.max_tokens
    fed = [*prompt(PROMPTS["short"]), *written.token_ids[:-1]]
    assert written.state.tokens_digest == extend_digest(INITIAL_DIGEST, fed)
    assert written.state.pending_token_ids == (written.token_ids[-1], tiny().tokenizer.special.end)
    assert written.text == answer(new_core(), asked("short")).text[: len(written.text)]
    assert isinstance(answers["book"].last.error, Draining)
    assert not core.has_work


def test_the_counters_count_what_was_fed_and_written() -> None:
    core = new_core()
    core.add(asked("short"))
    core.add(Sequence("book", [9] * 100))
    assert core.stats().num_waiting == 2
    core.step()
    assert (core.stats().num_running, core.stats().num_slots_in_use) == (2, 2)
    run(core)
    stats = core.stats()
    num_prompt_tokens = len(prompt(PROMPTS["short"]))
    assert stats.prompt_tokens_total == num_prompt_tokens + 100
    assert stats.generation_tokens_total == GREEDY.max_tokens
    assert stats.iteration_tokens.total == num_prompt_tokens + 100 + GREEDY.max_tokens - 1
    assert (stats.num_running, stats.num_waiting, stats.num_slots_in_use, stats.num_slots) == (0, 0, 0, 4)


def test_timings_add_up_and_never_run_backwards() -> None:
    written = answer(new_core(), asked("short"))
    timings = written.last.timings
    assert timings.queue_seconds >= 0
    assert timings.prefill_seconds > 0
    assert timings.decode_seconds > 0

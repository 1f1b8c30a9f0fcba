"""The way back: what a stop string leaves in the memory (correctness row 8), and text that spans tokens."""

import dataclasses
import functools
from itertools import pairwise

import pytest

from engine.device.state_pool import StatePool
from engine.progress import Progress
from engine.sampling.sampling_params import SamplingParams
from engine.sampling.stopping import Stopping
from engine.sequence import FinishReason, Sequence, SequenceOutput
from tests.engine.harness import (
    Answer,
    answer,
    ascii_words,
    assert_same_session,
    checkpoint_that_says,
    collect,
    new_core,
    prompt,
    run,
    tiny,
)

WORDS = checkpoint_that_says(ascii_words())
QUESTION = prompt("where is the ball?")
PARAMS = SamplingParams(temperature=1.0, seed=4, max_tokens=60, ignore_eos=True)


@functools.cache
def unstopped() -> Answer:
    """What the model says when nothing stops it: words of several characters, nearly all of them ASCII."""
    return answer(new_core(checkpoint=WORDS), Sequence("unstopped", QUESTION, PARAMS))


def spans() -> list[tuple[bytes, int]]:
    """The bytes of every token of that answer, and where they begin."""
    spans, start = [], 0
    for token_id in unstopped().token_ids:
        data = tiny().tokenizer.decode_bytes(token_id)
        spans.append((data, start))
        start += len(data)
    return spans


def stopped_by(*stops: str) -> Answer:
    params = dataclasses.replace(PARAMS, stop=stops)
    return answer(new_core(checkpoint=WORDS), Sequence("stopped", QUESTION, params))


def first_place(stop: str) -> int:
    place = unstopped().text.find(stop)
    assert place >= 0
    return place


def visible_token_ids(stop: str) -> list[int]:
    """The answer's tokens before the stop string, and what is visible of the one that it cuts, encoded anew."""
    cut = first_place(stop)
    token_ids = []
    for token_id, (data, start) in zip(unstopped().token_ids, spans(), strict=True):
        if start + len(data) <= cut:
            token_ids.append(token_id)
        elif start < cut:
            token_ids += tiny().tokenizer.encode(data[: cut - start].decode())
    return token_ids


def assert_fed_only_what_is_visible(stopped: Answer, stop: str) -> None:
    """The state equals that of a session that was fed the prompt and the visible text."""
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.text == unstopped().text[: first_place(stop)]
    fed = [*QUESTION, *visible_token_ids(stop)]
    expected = answer(new_core(checkpoint=WORDS), Sequence("visible", fed)).state
    expected = dataclasses.replace(expected, pending_token_ids=(tiny().tokenizer.special.end,))
    assert_same_session(stopped.state, expected)


def stop_over(num_tokens: int, skip: int = 0, drop: int = 0) -> str:
    """Some text that so many tokens wrote, without the first token's `skip` and the last one's `drop` characters, and
    that stands nowhere before."""
    for index in range(len(spans()) - num_tokens + 1):
        pieces = [data.decode() for data, _ in spans()[index : index + num_tokens]]
        text = "".join(pieces)
        stop = text[skip : len(text) - drop]
        if skip < len(pieces[0]) and drop < len(pieces[-1]) and stop and first_place(stop) == spans()[index][1] + skip:
            return stop
    raise AssertionError("the model says too little for this test")


def test_the_answer_that_these_tests_cut_is_long_and_made_of_ascii_words() -> None:
    assert len(unstopped().token_ids) == 60
    assert unstopped().text.isascii()
    assert sum(len(data) > 1 for data, _ in spans()) > 50


@pytest.mark.parametrize("num_tokens", [2, 3, 4])
def test_a_stop_string_over_whole_tokens_leaves_what_the_visible_text_leaves(num_tokens: int) -> None:
    stop = stop_over(num_tokens)
    assert_fed_only_what_is_visible(stopped_by(stop), stop)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4])
def test_a_stop_string_that_begins_inside_a_token_leaves_the_tokens_visible_part(num_tokens: int) -> None:
    stop = stop_over(num_tokens, skip=1)
    assert_fed_only_what_is_visible(stopped_by(stop), stop)


@pytest.mark.parametrize("num_tokens", [2, 3])
def test_a_stop_string_that_begins_and_ends_inside_tokens_leaves_what_the_visible_text_leaves(num_tokens: int) -> None:
    stop = stop_over(num_tokens, skip=1, drop=1)
    assert_fed_only_what_is_visible(stopped_by(stop), stop)


@pytest.mark.parametrize("last", [1, 4, 5, 6, 9, 10])
def test_a_hold_that_moved_on_before_the_match_is_rewound_to_the_match(last: int) -> None:
    """Stop strings that nearly match keep text held, one overlapping the next, up to the real one, whose first token
    stands behind the first held one."""
    pieces = [data.decode() for data, _ in spans()]
    nearly = [a + b + c + "\0" for a, b, c in zip(pieces[:last], pieces[1:], pieces[2:], strict=False)]
    stop = pieces[last][-1] + pieces[last + 1] + pieces[last + 2]
    assert first_place(stop) == spans()[last + 1][1] - 1
    assert_fed_only_what_is_visible(stopped_by(*nearly, stop), stop)


def test_text_that_was_held_in_vain_changes_nothing() -> None:
    pieces = [data.decode() for data, _ in spans()]
    held = stopped_by(*(a + b + "\0" for a, b in list(pairwise(pieces))[:16]))
    assert (held.text, held.token_ids) == (unstopped().text, unstopped().token_ids)
    assert_same_session(held.state, unstopped().state, tolerance=0)


def test_a_stop_string_in_the_first_token_leaves_the_prompt_alone() -> None:
    data, _ = spans()[0]
    stopped = stopped_by(data.decode())
    assert (stopped.text, stopped.last.num_generated_tokens) == ("", 1)
    expected = answer(new_core(checkpoint=WORDS), Sequence("prompt", QUESTION)).state
    assert stopped.state.tokens_digest == expected.tokens_digest


def test_a_session_goes_on_after_a_stop_string_as_if_only_the_visible_text_had_been_said() -> None:
    core = new_core(checkpoint=WORDS)
    stop = stop_over(2, skip=1)
    more = [tiny().tokenizer.special.user, *tiny().tokenizer.encode("and the cat?"), tiny().tokenizer.special.assistant]
    second = answer(core, Sequence("second", more, PARAMS, stopped_by(stop).state))
    fed = [*QUESTION, *visible_token_ids(stop), tiny().tokenizer.special.end, *more]
    whole = answer(core, Sequence("whole", fed, PARAMS))
    assert second.token_ids == whole.token_ids
    assert_same_session(second.state, whole.state)


def test_an_abort_between_the_match_and_the_end_frees_the_slot() -> None:
    core = new_core(checkpoint=WORDS)
    stop = stop_over(2, skip=1)
    core.add(Sequence("stopped", QUESTION, dataclasses.replace(PARAMS, stop=(stop,))))
    outputs: list[SequenceOutput] = []
    while not outputs or collect(outputs)["stopped"].text != unstopped().text[: first_place(stop)]:
        outputs += core.step()
    assert outputs[-1].finish_reason is None
    core.abort("stopped")
    core.check_integrity()
    assert core.step()[-1].finish_reason is FinishReason.ABORT


def test_nothing_that_a_stop_string_hides_is_ever_shown_and_its_neighbours_do_not_notice() -> None:
    stop = stop_over(3, skip=1)
    stopping = Sequence("stopping", QUESTION, dataclasses.replace(PARAMS, stop=(stop,)))
    answers = run(new_core(checkpoint=WORDS), stopping, Sequence("free", QUESTION, PARAMS))
    assert answers["stopping"].text == unstopped().text[: first_place(stop)]
    assert answers["free"].text == unstopped().text


def test_at_most_two_copies_of_a_state_are_kept_however_long_the_hold_moves_on() -> None:
    pool = StatePool(tiny().model.config, 1, tiny().model.embedding.weight.device)
    params = SamplingParams(stop=("aaaab",), max_tokens=100)
    sequence = Sequence("a", QUESTION, params)
    progress = Progress(sequence, Stopping(params, 0, [b"", b"a"]), seed=0, now=0.0)
    sequence.slot = pool.acquire()
    for count in range(1, 60):
        assert progress.stopping is not None
        progress.stopping.accept(1)
        sequence.generated_token_ids.append(1)
        progress.keep_way_back(pool)
        held = progress.stopping.first_held_token
        assert held == max(0, count - 4)
        assert 1 <= progress.num_copies <= 2


def test_a_character_that_spans_tokens_is_shown_whole() -> None:
    first, second = (bytes([byte]) for byte in "é".encode())
    params = SamplingParams(temperature=3.0, seed=1, max_tokens=40, ignore_eos=True)
    core = new_core(checkpoint=checkpoint_that_says({first, second}))
    core.add(Sequence("é", QUESTION, params))
    outputs = []
    while core.has_work:
        outputs += core.step()
    data = b"".join(tiny().tokenizer.decode_bytes(token_id) for token_id in collect(outputs)["é"].token_ids)
    assert data.count(first + second) > 3
    assert "".join(output.text for output in outputs) == data.decode("utf-8", errors="replace")
    shown_with = [tiny().tokenizer.decode_bytes(output.token_ids[0]) for output in outputs if output.text.endswith("é")]
    assert set(shown_with) == {second}

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from engine.sampling.sampling_params import SamplingParams
from engine.sampling.stopping import Cut, Stopping, Verdict
from engine.sequence import FinishReason

END = 0


def stopping(tokens: list[bytes], params: SamplingParams, opening: bytes = b"") -> Stopping:
    """One whose token ids 1, 2, … are `tokens`."""
    return Stopping(params, END, [b"", *tokens], opening)


def read(tokens: list[bytes], params: SamplingParams, opening: bytes = b"") -> tuple[list[Verdict], Stopping]:
    """The verdicts on `tokens` one after the other, up to the first that ends the answer."""
    judge = stopping(tokens, params, opening)
    verdicts: list[Verdict] = []
    for token_id in range(1, len(tokens) + 1):
        verdicts.append(judge.accept(token_id))
        if verdicts[-1].finish_reason is not None:
            break
    return verdicts, judge


def shown(verdicts: list[Verdict]) -> bytes:
    return b"".join(verdict.released for verdict in verdicts)


def test_a_stop_string_split_over_tokens_is_found_and_never_shown() -> None:
    verdicts, _ = read([b"say ", b"a", b"b", b"c!", b"more"], SamplingParams(stop=("abc",)))
    assert [verdict.released for verdict in verdicts] == [b"say ", b"", b"", b""]
    assert verdicts[-1] == Verdict(b"", FinishReason.STOP, Cut(num_kept_tokens=1, visible=b""))


def test_the_visible_part_of_a_straddling_token_is_shown_and_named() -> None:
    verdicts, _ = read([b"one ", b"two;", b";;"], SamplingParams(stop=(";;;",)))
    assert [verdict.released for verdict in verdicts] == [b"one ", b"two", b""]
    assert verdicts[-1].cut == Cut(num_kept_tokens=1, visible=b"two")


def test_held_bytes_are_released_as_soon_as_they_cannot_begin_a_stop_string() -> None:
    verdicts, judge = read([b"x\n", b"\n", b"y", b"\nz"], SamplingParams(stop=("\n\n\n",)))
    assert [verdict.released for verdict in verdicts] == [b"x", b"", b"\n\ny", b"\nz"]
    assert judge.first_held_token is None


def test_a_hold_that_moves_on_names_its_first_token_anew() -> None:
    judge = stopping([b"a"] * 5, SamplingParams(stop=("aaab",)))
    held = []
    for token_id in range(1, 6):
        judge.accept(token_id)
        held.append(judge.first_held_token)
    assert held == [0, 0, 0, 1, 2]


def test_of_two_stop_strings_the_one_that_is_complete_first_ends_the_answer() -> None:
    verdicts, _ = read([b"xabcd"], SamplingParams(stop=("abcd", "bc")))
    assert shown(verdicts) == b"xa"
    verdicts, _ = read([b"xabc"], SamplingParams(stop=("bc", "abc")))
    assert shown(verdicts) == b"x"


def test_a_stop_string_may_end_in_the_middle_of_a_characters_neighbourhood() -> None:
    owl = "🦉".encode()
    verdicts, _ = read([b"a", owl[:2], owl[2:], b"b"], SamplingParams(stop=("🦉",)))
    assert shown(verdicts) == b"a"
    assert verdicts[-1].cut == Cut(num_kept_tokens=1, visible=b"")


@given(
    st.text("ab", max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 12), max_size=5),
)
def test_what_is_shown_does_not_depend_on_the_borders_of_tokens(text: str, stops: list[str], cuts: list[int]) -> None:
    data = text.encode()
    params = SamplingParams(stop=tuple(stops), max_tokens=100)
    borders = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    tokens = [data[a:b] for a, b in pairwise(borders)]

    verdicts, judge = read(tokens, params)
    one_by_one, byte_judge = read([data[i : i + 1] for i in range(len(data))], params)
    is_stopped = bool(verdicts) and verdicts[-1].finish_reason is FinishReason.STOP
    ends = [data.find(stop.encode()) + len(stop) for stop in stops if stop.encode() in data]
    assert is_stopped == bool(ends)
    assert shown(verdicts) + judge.release_all() == shown(one_by_one) + byte_judge.release_all()
    for count, verdict in enumerate(verdicts, start=1):
        # Nothing that was shown is ever taken back.
        assert data.startswith(shown(verdicts[:count])), verdict
    if is_stopped:
        cut = verdicts[-1].cut
        assert cut is not None
        assert b"".join(tokens[: cut.num_kept_tokens]) + cut.visible == shown(verdicts)
        assert not any(stop.encode() in shown(verdicts) for stop in stops)


def test_end_releases_what_was_held_and_stops() -> None:
    judge = stopping([b"wait", b"ST"], SamplingParams(stop=("STOP",)))
    assert judge.accept(1).released == b"wait"
    assert judge.accept(2).released == b""
    assert judge.accept(END) == Verdict(b"ST", FinishReason.STOP)


def test_the_length_ends_the_answer_and_releases_what_was_held() -> None:
    verdicts, _ = read([b"a", b"S", b"never"], SamplingParams(stop=("STOP",), max_tokens=2))
    assert verdicts == [Verdict(b"a"), Verdict(b"S", FinishReason.LENGTH)]


def test_a_stop_string_completed_by_the_last_token_stops_rather_than_fills_the_length() -> None:
    verdicts, _ = read([b"a", b"S"], SamplingParams(stop=("S",), max_tokens=2))
    assert verdicts[-1].finish_reason is FinishReason.STOP


def test_before_min_tokens_nothing_stops_and_nothing_is_held() -> None:
    params = SamplingParams(stop=("S", "ST"), min_tokens=3)
    judge = stopping([b"S", b"T", b"xS"], params)
    assert not judge.can_end
    assert judge.accept(1) == Verdict(b"S")
    assert judge.accept(2) == Verdict(b"T")
    assert not judge.can_end
    assert judge.accept(3) == Verdict(b"x", FinishReason.STOP, Cut(2, b"x"))
    assert judge.can_end


def test_a_token_without_bytes_belongs_to_the_text_before_it() -> None:
    verdicts, _ = read([b"a", b"", b"S"], SamplingParams(stop=("S",)))
    assert verdicts[-1].cut == Cut(num_kept_tokens=2, visible=b"")


def test_ignore_eos_never_lets_the_model_end() -> None:
    assert not stopping([], SamplingParams(ignore_eos=True)).can_end
    assert stopping([], SamplingParams()).can_end


def test_the_opening_of_an_answer_is_not_shown_and_only_the_first_token_has_one() -> None:
    verdicts, _ = read([b" so", b" it", b" is"], SamplingParams(), opening=b" ")
    assert shown(verdicts) == b"so it is"


def test_an_answer_without_the_opening_is_shown_whole() -> None:
    verdicts, _ = read([b"so", b" it"], SamplingParams(), opening=b" ")
    assert shown(verdicts) == b"so it"


def test_what_a_cut_leaves_of_the_first_token_keeps_its_opening() -> None:
    verdicts, _ = read([b" kitchen"], SamplingParams(stop=("chen",)), opening=b" ")
    assert verdicts == [Verdict(b"kit", FinishReason.STOP, Cut(num_kept_tokens=0, visible=b" kit"))]


def test_a_stop_string_is_not_looked_for_in_the_opening() -> None:
    verdicts, _ = read([b" so", b"."], SamplingParams(stop=(" ",)), opening=b" ")
    assert shown(verdicts) == b"so."

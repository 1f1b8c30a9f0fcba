"""Which messages are new: the cases of SESSIONS.md 1.3."""

from collections.abc import Sequence

import pytest

from engine.errors import EmptyPrompt, InvalidRequest, SessionDiverged
from engine.sessions.ledger import (
    LEDGER_LIMIT,
    History,
    Message,
    Reading,
    extend_ledger,
    message_digest,
    num_known_messages,
    read_messages,
)

AUTO, NEW, MATCH = History.AUTO, History.NEW, History.MATCH


def conversation(*texts: str) -> list[Message]:
    """The user begins, then the two take turns; `system:…` is a system message and takes no turn."""
    messages, speaker = [], 0
    for text in texts:
        if text.startswith("system:"):
            messages.append(Message("system", text.removeprefix("system:")))
        else:
            messages.append(Message(("user", "assistant")[speaker % 2], text))
            speaker += 1
    return messages


def ledger_of(*texts: str) -> list[bytes]:
    return [message_digest(message) for message in conversation(*texts)]


def fed(reading: Reading) -> list[str]:
    return [message.content for message in reading.messages]


def read(
    messages: Sequence[Message], ledger: Sequence[bytes] = (), history: History = AUTO, system: bytes | None = None
) -> Reading:
    return read_messages(messages, ledger, system, history)


def test_a_single_message_is_always_new() -> None:
    assert fed(read(conversation("Hi"), ledger_of("Hi", "Hello", "Hi", "Hello"))) == ["Hi"]


def test_a_client_that_resends_everything_is_only_heard_from_where_the_ledger_ends() -> None:
    assert fed(read(conversation("a", "b", "c", "d", "e"), ledger_of("a", "b", "c", "d"))) == ["e"]


def test_a_client_that_trims_its_oldest_messages_is_heard_the_same() -> None:
    assert fed(read(conversation("c", "d", "e"), ledger_of("a", "b", "c", "d"))) == ["e"]


def test_two_turns_that_both_say_hi_are_told_apart_by_what_lies_between() -> None:
    assert fed(read(conversation("Hi", "Hello", "Hi"), ledger_of("Hi", "Hello"))) == ["Hi"]


def test_the_largest_beginning_that_ends_the_ledger_counts() -> None:
    ledger = ledger_of("x", "y", "x", "y")
    assert fed(read(conversation("x", "y", "x", "y", "z"), ledger)) == ["z"]


def test_a_transcript_is_read_whole_by_a_session_that_has_read_nothing() -> None:
    reading = read(conversation("a", "b", "c"))
    assert fed(reading) == ["a", "b", "c"]
    assert list(reading.entries) == ledger_of("a", "b", "c")


def test_after_an_ingest_a_resending_client_works_from_its_first_turn_on() -> None:
    """A document is no entry, so the ledger is empty, then grows."""
    ledger: tuple[bytes, ...] = ()
    said = ["q1"]
    for number in range(1, 4):
        reading = read(conversation(*said), ledger)
        assert fed(reading) == [f"q{number}"]
        answer = message_digest(Message("assistant", f"a{number}"))
        ledger = extend_ledger(ledger, (*reading.entries, answer))
        said += [f"a{number}", f"q{number + 1}"]


def test_several_messages_may_be_new_at_once() -> None:
    assert fed(read(conversation("a", "b", "c", "d", "e"), ledger_of("a", "b"))) == ["c", "d", "e"]


def test_an_empty_answer_is_an_entry_like_any_other() -> None:
    assert fed(read(conversation("a", "", "c"), ledger_of("a", ""))) == ["c"]


def test_white_space_around_a_resent_answer_does_not_matter() -> None:
    assert fed(read(conversation("a", "b", "c"), ledger_of("a", " b\n"))) == ["c"]


def test_reasoning_that_a_client_drops_from_a_resent_answer_does_not_matter() -> None:
    answer = "<think>\nb comes\nafter a\n</think>\n\nb"
    for resent, answered in (("b", answer), (answer, "b"), (answer, answer)):
        assert fed(read(conversation("a", resent, "c"), ledger_of("a", answered))) == ["c"]


@pytest.mark.parametrize(
    ("resent", "answered"),
    [
        ("a  b", "a b"),
        ("B", "b"),
        ("b", "b <think>more</think>"),
        ("b", "<think>without an end b"),
        ("<think>x</think>b", "<think>x</think><think>y</think>b"),
    ],
)
def test_nothing_else_of_an_answer_is_left_out(resent: str, answered: str) -> None:
    with pytest.raises(SessionDiverged):
        read(conversation("a", resent, "c"), ledger_of("a", answered))


def test_what_the_user_says_in_the_form_of_reasoning_counts() -> None:
    with pytest.raises(SessionDiverged):
        read(conversation("a", "b", "c"), ledger_of("<think>x</think>a", "b"))


def test_a_ledger_says_how_many_messages_continue_it() -> None:
    said = conversation("system:be kind", "a", "b", "c", "d", "e")
    for ledger, expected in (
        (ledger_of("a", "b", "c", "d"), 4),
        (ledger_of("x", "y", "a", "b"), 2),
        (ledger_of("a", "b", "x", "y"), 0),
        ([], 0),
    ):
        assert num_known_messages(said, ledger) == expected


@pytest.mark.parametrize(
    ("texts", "departs"),
    [
        (("a", "B", "c"), 1),
        (("other", "b", "c"), 0),
        (("a", "b", "c"), 2),
        (("a", "b", "c", "D", "e"), 3),
    ],
)
def test_a_departure_is_refused_and_named(texts: tuple[str, ...], departs: int) -> None:
    with pytest.raises(SessionDiverged, match=rf"messages\[{departs}\]"):
        read(conversation(*texts), ledger_of("a", "b", "c", "d"))


def test_the_named_message_counts_system_messages_too() -> None:
    with pytest.raises(SessionDiverged, match=r"messages\[2\]"):
        read(conversation("system:be kind", "a", "B", "c"), ledger_of("a", "b"))


def test_new_matches_nothing() -> None:
    assert fed(read(conversation("a", "b", "c"), ledger_of("a", "b"), NEW)) == ["a", "b", "c"]


def test_match_wants_at_least_one_known_message() -> None:
    assert fed(read(conversation("a", "b", "c"), ledger_of("a", "b"), MATCH)) == ["c"]
    for messages, ledger in (
        (conversation("c"), ledger_of("a", "b")),
        (conversation("a", "b", "c"), []),
        (conversation("x", "y", "c"), ledger_of("a", "b")),
    ):
        with pytest.raises(SessionDiverged):
            read(messages, ledger, MATCH)


def test_a_system_message_on_every_call_is_fed_once() -> None:
    first = read(conversation("system:be kind", "a"))
    assert fed(first) == ["be kind", "a"]
    again = read(conversation("system:be kind", "a", "b", "c"), ledger_of("a", "b"), system=first.system_digest)
    assert fed(again) == ["c"]
    assert again.system_digest == first.system_digest


def test_another_system_message_is_fed_before_what_is_new() -> None:
    first = read(conversation("system:be kind", "a"))
    changed = read(conversation("system:be brief", "a", "b", "c"), ledger_of("a", "b"), system=first.system_digest)
    assert fed(changed) == ["be brief", "c"]
    assert changed.system_digest != first.system_digest


def test_a_call_without_a_system_message_keeps_the_last_one_in_mind() -> None:
    digest = read(conversation("system:be kind", "a")).system_digest
    assert read(conversation("c"), ledger_of("a", "b"), system=digest).system_digest == digest


def test_system_messages_are_no_entries() -> None:
    assert len(read(conversation("system:be kind", "a")).entries) == 1


def test_a_full_ledger_matches_a_history_that_is_longer_than_itself() -> None:
    texts = [str(number) for number in range(LEDGER_LIMIT + 10)]
    ledger = extend_ledger((), ledger_of(*texts))
    assert len(ledger) == LEDGER_LIMIT
    assert fed(read(conversation(*texts, "next"), ledger)) == ["next"]
    texts[20] = "changed"
    with pytest.raises(SessionDiverged):
        read(conversation(*texts, "next"), ledger)


def test_a_role_is_part_of_what_is_compared() -> None:
    ledger = [message_digest(Message("user", "a")), message_digest(Message("user", "b"))]
    with pytest.raises(SessionDiverged):
        read(conversation("a", "b", "c"), ledger)


def test_the_last_word_must_be_the_users() -> None:
    for messages in (conversation("a", "b"), conversation("system:only")):
        with pytest.raises(InvalidRequest) as refused:
            read(messages)
        assert refused.value.param == "messages"


@pytest.mark.parametrize("messages", [[], conversation(""), conversation("a", "b", "")])
def test_nothing_to_say_is_an_empty_prompt(messages: list[Message]) -> None:
    with pytest.raises(EmptyPrompt):
        read(messages)

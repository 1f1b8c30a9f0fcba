"""The wire without a wire."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import clients
from clients import ApiError, ProtocolError
from clients import protocol as wire
from clients.messages import ChatAnswer, ChatDelta, SessionInfo

SESSION = {
    "object": "session",
    "id": "s",
    "version": 3,
    "position": 41,
    "bytes": 1000,
    "created": 1.5,
    "last_used": 2,
    "metadata": {"a": "b"},
    "open_ingest": {"document_id": "d", "offset": 7},
}


def test_every_public_name_exists_and_no_other_is_promised() -> None:
    public = {name for name in vars(clients) if not name.startswith("_")}
    modules = {path.stem for path in Path(clients.__file__).parent.glob("*.py")}
    assert public - modules == set(clients.__all__)


@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1)),
    cuts=st.lists(st.integers(0, 400)),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_events_do_not_depend_on_how_the_bytes_were_cut(texts: list[str], cuts: list[int], newline: str) -> None:
    lines = [f": keep-alive{newline}{newline}event: x{newline}data: {text}{newline}{newline}" for text in texts]
    stream = "".join(lines).encode()
    parser = wire.EventParser()
    borders = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    events = [event for start, end in pairwise(borders) for event in parser.push(stream[start:end])]
    # A last lone CR may be the first half of CR LF: the event is whole with the next byte.
    events += parser.push(b"\n")
    assert events == texts


def test_an_event_of_several_data_lines_is_joined_by_newlines() -> None:
    assert wire.EventParser().push(b"data: a\ndata:b\n\ndata: never finished\n") == ["a\nb"]


def test_an_event_that_is_not_utf8_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="UTF-8"):
        wire.EventParser().push(b"data: \xff\n\n")


def test_an_error_event_raises_with_its_code_and_no_status() -> None:
    with pytest.raises(ApiError, match="memory_diverged: layer 2") as caught:
        wire.parse_chat_event(json.dumps({"error": {"message": "layer 2", "code": "memory_diverged"}}))
    assert (caught.value.code, caught.value.status) == ("memory_diverged", None)


def test_a_refusal_carries_status_code_param_and_hints() -> None:
    body = {
        "error": {"message": "no", "type": "conflict", "code": "ingest_offset", "param": "offset", "expected_offset": 9}
    }
    error = wire.parse_refusal(409, json.dumps(body).encode(), "2")
    assert (error.status, error.code, error.param) == (409, "ingest_offset", "offset")
    assert (error.expected_offset, error.retry_after_seconds) == (9, 2.0)


@pytest.mark.parametrize("body", [b"<html>bad gateway</html>", b"[]", b'{"error": "text"}', b""])
def test_a_refusal_by_something_else_is_described_by_its_status(body: bytes) -> None:
    error = wire.parse_refusal(502, body, "Wed, 21 Oct 2015 07:28:00 GMT")
    assert (error.code, error.status, error.retry_after_seconds) == ("http_502", 502, None)


def test_a_turn_puts_conditions_into_headers_and_the_rest_into_the_body() -> None:
    request = wire.chat_request(
        "Hi", {"session_id": "s", "if_match": 4, "idempotency_key": "k", "temperature": 0.0}, stream=True
    )
    assert request.headers == {"If-Match": '"4"', "Idempotency-Key": "k"}
    assert request.json == {
        "session_id": "s",
        "temperature": 0.0,
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_session_id_cannot_leave_its_place_in_the_path() -> None:
    assert wire.get_session("a/../b?c#d e").request.path == "/v1/sessions/a%2F..%2Fb%3Fc%23d%20e"


@pytest.mark.parametrize(
    ("base_url", "address"),
    [
        ("http://h:1", "http://h:1"),
        ("http://h:1/", "http://h:1"),
        ("http://h:1/v1", "http://h:1"),
        ("http://h/atlas/v1/", "http://h/atlas"),
    ],
)
def test_the_address_may_be_written_with_or_without_v1(base_url: str, address: str) -> None:
    assert wire.connection_settings(base_url, "k") == (address, {"Authorization": "Bearer k"})


def test_a_session_is_read_with_its_open_document() -> None:
    info = SessionInfo.parse(SESSION)
    assert (info.session_id, info.version, info.position, info.num_bytes) == ("s", 3, 41, 1000)
    assert info.open_ingest is not None
    assert (info.open_ingest.document_id, info.open_ingest.offset) == ("d", 7)


@pytest.mark.parametrize("name", ["id", "version", "position", "bytes", "created"])
def test_a_session_without_a_field_is_a_protocol_error_that_names_it(name: str) -> None:
    with pytest.raises(ProtocolError, match=name):
        SessionInfo.parse({key: value for key, value in SESSION.items() if key != name})


def test_true_is_not_a_version() -> None:
    with pytest.raises(ProtocolError, match="version"):
        SessionInfo.parse({**SESSION, "version": True})


def test_the_last_chunks_carry_the_end_the_commit_and_the_usage() -> None:
    commit = {"id": "s", "version": 1, "committed": True, "durability": "disk", "position": 12}
    end = ChatDelta.parse({"choices": [{"delta": {}, "finish_reason": "stop"}], "session": commit})
    assert (end.text, end.finish_reason) == ("", "stop")
    assert end.session is not None
    assert (end.session.version, end.session.durability) == (1, "disk")
    details = {"cached_tokens": 5, "cache_write_tokens": 3}
    usage = ChatDelta.parse(
        {"choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": 2, "prompt_tokens_details": details}}
    ).usage
    assert usage is not None
    assert (usage.num_prompt_tokens, usage.num_completion_tokens) == (8, 2)
    assert (usage.num_cached_tokens, usage.num_written_tokens) == (5, 3)


@pytest.mark.parametrize("value", [[], "x", None, {"choices": []}, {"choices": [{"message": None}]}])
def test_a_body_that_is_no_completion_is_a_protocol_error(value: object) -> None:
    with pytest.raises(ProtocolError):
        ChatAnswer.parse(value)

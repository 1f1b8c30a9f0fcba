"""POST /v1/sessions/{id}/ingest: a document of any size, in pieces of any size, once."""

import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.engine.sessions_harness import text_of
from tests.server.harness import (
    ThreadedServer,
    ask,
    assert_refused,
    events_of,
    new_name,
    session_of,
    until,
)

TEXT = {"Content-Type": "text/plain; charset=utf-8"}
EVENTS = {**TEXT, "Accept": "text/event-stream"}
DOCUMENT = text_of(20) + "Ünïcödé 😀\n".encode() * 5


def pieces(raw: bytes, num_bytes: int) -> Iterator[bytes]:
    for start in range(0, len(raw), num_bytes):
        yield raw[start : start + num_bytes]


def path(session_id: str) -> str:
    return f"/v1/sessions/{session_id}/ingest"


@pytest.fixture(scope="module")
def whole_digest(server: ThreadedServer) -> str:
    """The tokens_digest of a session that read `DOCUMENT` in one piece."""
    with httpx.Client(base_url=server.base_url, timeout=60) as client:
        name = new_name("whole")
        assert client.post(path(name), content=DOCUMENT, headers=TEXT).status_code == 200
        digest: str = session_of(client, name)["tokens_digest"]
        return digest


@pytest.mark.parametrize("num_bytes", [3, 41, 1000, 70_000])
def test_the_pieces_of_an_upload_do_not_change_what_is_learned(
    client: httpx.Client, session_id: str, whole_digest: str, num_bytes: int
) -> None:
    response = client.post(path(session_id), content=pieces(DOCUMENT, num_bytes), headers=TEXT)
    assert response.status_code == 200, response.text
    assert session_of(client, session_id)["tokens_digest"] == whole_digest


def test_json_text_is_the_same_document(client: httpx.Client, session_id: str, whole_digest: str) -> None:
    response = client.post(path(session_id), json={"text": DOCUMENT.decode()})
    assert response.status_code == 200, response.text
    assert session_of(client, session_id)["tokens_digest"] == whole_digest


def test_the_answer_tells_what_was_read_and_committed(client: httpx.Client, session_id: str) -> None:
    response = client.post(path(session_id), content=DOCUMENT, params={"document_id": "book"}, headers=TEXT)
    body = response.json()
    session = session_of(client, session_id)
    assert body["document_id"] == "book"
    assert body["bytes"] == len(DOCUMENT)
    assert body["tokens"] == body["session"]["position"] == session["position"]
    assert body["session"]["version"] == session["version"] == int(response.headers["x-session-version"])
    assert session["version"] > 3
    assert session["open_ingest"] is None
    answer = ask(client, "what is the code?", session_id=session_id).json()
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == session["position"]


def test_progress_events_grow_and_end_with_the_result(client: httpx.Client, session_id: str) -> None:
    *progress, result, done = events_of(client.post(path(session_id), content=pieces(DOCUMENT, 500), headers=EVENTS))
    assert done == "[DONE]"
    assert result["done"] is True
    assert result["bytes"] == len(DOCUMENT)
    assert result["session"]["version"] == session_of(client, session_id)["version"]
    for name in ("bytes", "tokens", "position", "version"):
        values = [step[name] for step in progress]
        assert values == sorted(set(values)), name
    assert all(step["tokens_per_second"] > 0 for step in progress)


def interrupted(server: ThreadedServer, session_id: str, raw: bytes, query: str = "") -> None:
    """Declares `raw` as a chunked body, sends most of it, and hangs up."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            f"POST {path(session_id)}{query} HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        for piece in pieces(raw, 100):
            connection.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        with httpx.Client(base_url=server.base_url) as client:
            until(lambda: client.get(f"/v1/sessions/{session_id}").status_code == 200)


def test_a_broken_upload_goes_on_at_its_last_commit_and_learns_the_same(
    server: ThreadedServer, client: httpx.Client, session_id: str, whole_digest: str
) -> None:
    interrupted(server, session_id, DOCUMENT[:-50], "?document_id=book")
    refused = client.post(path(session_id), content=DOCUMENT, params={"document_id": "book"}, headers=TEXT)
    assert_refused(refused, 409, "ingest_offset")
    assert refused.headers["x-should-retry"] == "false"
    opened = session_of(client, session_id)["open_ingest"]
    offset = opened["offset"]
    assert opened["document_id"] == "book"
    assert refused.json()["error"]["expected_offset"] == offset
    assert 0 < offset < len(DOCUMENT)

    before = session_of(client, session_id)
    assert_refused(ask(client, "Hi", session_id=session_id), 409, "ingest_open")
    assert ask(client, "Hi", session_id=session_id, read_only=True).status_code == 200
    other = client.post(path(session_id), content=b"x", params={"document_id": "other"}, headers=TEXT)
    assert_refused(other, 409, "ingest_open")
    assert session_of(client, session_id) == before

    params = {"document_id": "book", "offset": offset}
    rest = client.post(path(session_id), content=DOCUMENT[offset:], params=params, headers=TEXT)
    assert rest.json()["bytes"] == len(DOCUMENT)
    after = session_of(client, session_id)
    assert after["tokens_digest"] == whole_digest
    assert after["open_ingest"] is None
    assert ask(client, "Hi", session_id=session_id).status_code == 200


def test_a_document_that_was_read_is_answered_and_not_learned_again(client: httpx.Client, session_id: str) -> None:
    params, key = {"document_id": "book"}, {**TEXT, "Idempotency-Key": "k"}
    first = client.post(path(session_id), content=DOCUMENT, params=params, headers=key)
    before = session_of(client, session_id)
    for headers, query in ((TEXT, params), (key, {}), (EVENTS, params)):
        again = client.post(path(session_id), content=pieces(DOCUMENT, 999), params=query, headers=headers)
        assert again.status_code == 200
        result = events_of(again)[0] if headers is EVENTS else again.json()
        assert result["session"] == first.json()["session"]
    other = client.post(path(session_id), content=DOCUMENT + b"!", params=params, headers=TEXT)
    assert_refused(other, 409, "idempotency_mismatch")
    assert session_of(client, session_id) == before


@pytest.mark.parametrize(
    ("raw", "code"), [(b"", "empty_prompt"), (b"caf\xe9", "invalid_unicode"), (b"\xf0\x9f\x98", "invalid_unicode")]
)
@pytest.mark.parametrize("headers", [TEXT, EVENTS])
def test_a_document_that_cannot_be_read_is_a_400_and_leaves_no_session(
    client: httpx.Client, session_id: str, raw: bytes, code: str, headers: dict[str, str]
) -> None:
    assert_refused(client.post(path(session_id), content=raw, headers=headers), 400, code)
    assert_refused(client.get(f"/v1/sessions/{session_id}"), 404, "session_not_found")


def test_invalid_bytes_after_a_commit_are_told_in_the_stream(
    server: ThreadedServer, client: httpx.Client, session_id: str
) -> None:
    def spoilt() -> Iterator[bytes]:
        yield DOCUMENT
        with httpx.Client(base_url=server.base_url) as other:
            until(lambda: other.get(f"/v1/sessions/{session_id}").status_code == 200)
        yield b"\xff"

    response = client.post(path(session_id), content=spoilt(), headers=EVENTS)
    assert response.status_code == 200
    assert events_of(response)[-1]["error"]["code"] == "invalid_unicode"
    offset = session_of(client, session_id)["open_ingest"]["offset"]
    rest = client.post(path(session_id), content=DOCUMENT[offset:], params={"offset": offset}, headers=TEXT)
    assert rest.status_code == 200


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"offset": "-1"}, "offset"),
        ({"offset": "x"}, "offset"),
        ({"offset": str(2**70)}, "offset"),
        ({"document_id": "a b"}, "document_id"),
        ({"document_id": "a\n"}, "document_id"),
        ({"document_id": "x" * 129}, "document_id"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused(
    client: httpx.Client, session_id: str, params: dict[str, str], param: str
) -> None:
    response = client.post(path(session_id), content=b"text", params=params, headers=TEXT)
    assert_refused(response, 400, "invalid_request", param)


def test_only_text_and_json_are_documents(client: httpx.Client, session_id: str) -> None:
    refused = client.post(path(session_id), content=b"x", headers={"Content-Type": "application/pdf"})
    assert_refused(refused, 415, "unsupported_media_type")
    latin = client.post(path(session_id), content=b"x", headers={"Content-Type": "text/plain; charset=latin-1"})
    assert_refused(latin, 415, "unsupported_media_type")
    assert_refused(client.post(path(session_id), json={"txt": "x"}), 400, "invalid_request", "text")
    # As `curl -T` sends it.
    assert client.post(path(session_id), content=b"text").status_code == 200


def test_a_document_may_be_conditional(client: httpx.Client, session_id: str) -> None:
    refused = client.post(path(session_id), content=b"text", headers={**TEXT, "If-Match": '"3"'})
    assert_refused(refused, 412, "version_conflict")
    assert client.post(path(session_id), content=b"text", headers={**TEXT, "If-Match": '"0"'}).status_code == 200

"""What a connection may send before anybody has seen a request: little."""

import itertools
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.connections.http_protocol import MAX_HEAD_NUM_BYTES, MAX_NUM_HEADERS, MAX_NUM_PIPELINED
from tests.server.harness import ThreadedServer, ask, open_stream, raw_answer, read_until, serving, until

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
# What is sent first, and what then follows without an end.
ENDLESS = {
    "a path": (b"GET /", b"a"),
    "a header": (POST + b"X-Long: ", b"a"),
    "headers": (POST, b"X-Long: " + b"a" * 500 + b"\r\n"),
    "trailers": (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nX-Long: ", b"a"),
}
PIECE_NUM_BYTES = 8192


def num_pieces_taken(connection: socket.socket, unit: bytes) -> int:
    """How many pieces of the units are sent before the server closes; a hundred times the limit at most."""
    piece = unit * (PIECE_NUM_BYTES // len(unit))
    for number in range(100 * MAX_HEAD_NUM_BYTES // PIECE_NUM_BYTES):
        try:
            connection.sendall(piece)
        except ConnectionError:
            return number
    raise AssertionError("the server takes everything")


@pytest.mark.parametrize("case", ENDLESS)
def test_a_request_that_never_begins_is_ended(server: ThreadedServer, case: str) -> None:
    beginning, unit = ENDLESS[case]
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(beginning)
        assert num_pieces_taken(connection, unit) * PIECE_NUM_BYTES >= MAX_HEAD_NUM_BYTES


def test_a_head_within_the_limit_and_many_requests_on_one_connection_are_served(client: httpx.Client) -> None:
    headers = {f"X-Long-{number}": "a" * 8000 for number in range(7)}
    for _ in range(4):
        assert client.get("/health", headers=headers).status_code == 200


def test_a_body_is_no_head(client: httpx.Client) -> None:
    text = "a " * MAX_HEAD_NUM_BYTES
    assert client.post("/tokenize", json={"text": text}).status_code == 200
    pieces = (text[:10_000].encode() for _ in range(14))
    body = itertools.chain([b'{"text":"'], pieces, [b'"}'])
    assert client.post("/tokenize", content=body, headers={"Content-Type": "application/json"}).status_code == 200


GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
CLOSE = b"Connection: close\r\n\r\n"
OK = b'{"status":"ok"}'


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Name: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Nul: a\x00b\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 1e3\r\n\r\n",
        POST + b"Content-Length: 99999999999999999999999999\r\n\r\n",
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        POST + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        GET + b"X: a\r\n" * (MAX_NUM_HEADERS + 1) + b"\r\n",
    ],
)
def test_what_is_no_request_is_a_400_of_the_one_shape_and_the_end(server: ThreadedServer, request_bytes: bytes) -> None:
    answer = raw_answer(server.port, request_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 "), answer
    assert b"\r\nconnection: close" in head.lower()
    assert b"\r\nx-request-id: " in head.lower()
    assert b"\r\ncontent-length: %d" % len(body) in head.lower()
    error = json.loads(body)["error"]
    assert error.pop("message")
    assert error == {"type": "invalid_request_error", "param": None, "code": "invalid_request"}


def test_as_many_headers_as_there_may_be_are_read(server: ThreadedServer) -> None:
    few = b"Host: x\r\nConnection: close\r\n"
    answer = raw_answer(server.port, b"GET /health HTTP/1.1\r\n" + few + b"X: a\r\n" * (MAX_NUM_HEADERS - 2) + b"\r\n")
    assert answer.endswith(OK)


def test_a_client_of_http_1_0_is_answered_and_its_connection_closed(server: ThreadedServer) -> None:
    answer = raw_answer(server.port, b"GET /health HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(OK)
    body = b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "stream": true}'
    head = b"POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    assert b"data: [DONE]" in raw_answer(server.port, head % len(body) + body)


def test_requests_that_come_at_once_are_answered_in_their_order(server: ThreadedServer) -> None:
    paths = [b"/health", b"/nothing", b"/ready", b"/v1/models"]
    requests = b"".join(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path for path in paths)
    answer = raw_answer(server.port, requests + GET + CLOSE)
    statuses = [rest[:3] for rest in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"404", b"200", b"200", b"200"]
    assert answer.index(b"not_found") < answer.index(b'"ready"') < answer.index(b"atlas-tiny")


def test_more_requests_at_once_than_may_wait_end_the_connection_and_not_the_server(
    server: ThreadedServer, client: httpx.Client
) -> None:
    with open_stream(server.port, "a", {"max_tokens": 30_000, "ignore_eos": True, "stream": True}) as connection:
        read_until(connection, b"data: ")
        connection.sendall((GET + b"\r\n") * (MAX_NUM_PIPELINED + 1))
        while connection.recv(2**16):
            pass
    until(lambda: server.num_slots_in_use == 0)
    assert client.get("/health").status_code == 200


def test_a_client_that_sends_two_turns_at_once_and_hangs_up_takes_both_back(
    server: ThreadedServer, client: httpx.Client, session_id: str
) -> None:
    fields = {"max_tokens": 30_000, "ignore_eos": True, "stream": True, "session_id": session_id}
    with open_stream(server.port, "a", fields) as connection:
        read_until(connection, b"data: ")
        body = json.dumps({"messages": [{"role": "user", "content": "b"}], "session_id": session_id}).encode()
        head = POST + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % len(body) + body)
        # So that closing resets it: a server that has stopped reading sees no other end.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    until(lambda: server.num_slots_in_use == 0, seconds=5)
    assert ask(client, "c", session_id=session_id).json()["session"]["version"] == 1


def test_an_answer_that_is_under_way_is_not_mixed_with_a_refusal(server: ThreadedServer) -> None:
    with open_stream(server.port, "a", {"max_tokens": 30_000, "ignore_eos": True, "stream": True}) as connection:
        said = read_until(connection, b"data: ")
        connection.sendall(b"nonsense\r\n\r\n")
        while piece := connection.recv(2**16):
            said += piece
    assert said.count(b"HTTP/1.1 ") == 1
    until(lambda: server.num_slots_in_use == 0)


def test_methods_that_a_path_does_not_have_are_405s_without_an_echo(server: ThreadedServer) -> None:
    for method in (b"TRACE", b"OPTIONS", b"PUT", b"PATCH", b"PURGE", b"PROPFIND", b"HEAD", b"DELETE"):
        request = b"%b /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Mark: echoed\r\n" % method
        answer = raw_answer(server.port, request + CLOSE)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 405 "), answer
        assert b"\r\nallow: POST" in head
        assert b"echoed" not in answer
        assert body == b"" if method == b"HEAD" else json.loads(body)["error"]["code"] == "method_not_allowed"


@pytest.fixture(scope="module")
def small(model: Path) -> Iterator[ThreadedServer]:
    """Three connections at once."""
    with serving(model, max_connections="3") as running:
        yield running


def test_a_connection_too_many_is_a_503_and_the_others_are_served(small: ThreadedServer) -> None:
    address = ("127.0.0.1", small.port)
    held = [socket.create_connection(address, timeout=10) for _ in range(3)]
    try:
        for connection in held:
            connection.sendall(GET + b"\r\n")
            read_until(connection, OK)
        with socket.create_connection(address, timeout=10) as refused:
            answer = read_until(refused, b"}}")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in answer.lower()
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"
        held[0].sendall(GET + b"\r\n")
        read_until(held[0], OK)
    finally:
        for connection in held:
            connection.close()
    until(lambda: raw_answer(small.port, GET + CLOSE).endswith(OK))

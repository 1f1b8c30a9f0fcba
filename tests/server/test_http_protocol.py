"""What a connection may send before anybody has seen a request: little."""

import itertools
import socket

import httpx
import pytest

from server.http_protocol import MAX_HEAD_NUM_BYTES
from tests.server.harness import ThreadedServer

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
# What is sent first, and what then follows without an end.
ENDLESS = {
    "a path": (b"GET /", b"a"),
    "a header": (POST + b"X-Long: ", b"a"),
    "headers": (POST, b"X-Short: a\r\n"),
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

"""Clients that take their time: each is cut at its deadline, and its session is as it was."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults.figures import tell
from tests.server.harness import (
    ThreadedServer,
    ask,
    metric_value,
    open_stream,
    read_until,
    serving,
    session_of,
    until,
)

HEAD_SECONDS = 0.4
BODY_SECONDS = 0.6
# A machine that is busy with tests may be late, but no deadline of a minute is taken for one of these.
LATE_SECONDS = 15.0
TRICKLE_SECONDS = 0.05
SEND_BUFFER_NUM_BYTES = 2**14
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def impatient(model: Path) -> Iterator[ThreadedServer]:
    settings = {"head_timeout_seconds": str(HEAD_SECONDS), "body_timeout_seconds": str(BODY_SECONDS)}
    with serving(model, ingest_commit_tokens="100", **settings) as running:
        # Inherited by every connection: the kernel takes little for a client that does not read.
        running.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_NUM_BYTES)
        yield running


@pytest.fixture
def client(impatient: ThreadedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=impatient.base_url, timeout=60) as connected:
        yield connected


def trickle(port: int, beginning: bytes, unit: bytes) -> tuple[bytes, float]:
    """Sends one unit after the other until the server hangs up: what it says, and after how many seconds."""
    said = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(beginning)
        connection.settimeout(TRICKLE_SECONDS)
        began = time.monotonic()
        while time.monotonic() < began + LATE_SECONDS:
            try:
                piece = connection.recv(4096)
            except TimeoutError:
                try:
                    connection.sendall(unit)
                except ConnectionError:
                    break
                continue
            except ConnectionError:
                break
            if not piece:
                break
            said += piece
        return said, time.monotonic() - began


def error_of(answer: bytes) -> dict[str, str | None]:
    """Of the one answer that a connection has said."""
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    error: dict[str, str | None] = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return error


@pytest.mark.parametrize(
    ("beginning", "unit"),
    [
        (b"GE", b""),
        (b"GET /health", b"a"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"a"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n", b"X: a\r\n"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n", b""),
        (b"\r\n", b"\r\n"),
    ],
    ids=["method", "path", "header", "headers", "nothing more", "empty lines"],
)
def test_a_head_that_trickles_is_cut_at_its_deadline(impatient: ThreadedServer, beginning: bytes, unit: bytes) -> None:
    said, seconds = trickle(impatient.port, beginning, unit)
    assert HEAD_SECONDS * 0.9 < seconds < LATE_SECONDS
    assert said.startswith((b"HTTP/1.1 408 ", b"HTTP/1.1 400 "))
    assert error_of(said)["code"] in ("timeout", "invalid_request")
    tell(f"a head of {beginning!r} and {unit!r}: cut after {seconds:.2f} s of {HEAD_SECONDS}")


def test_a_second_head_on_a_connection_has_the_same_deadline(impatient: ThreadedServer) -> None:
    whole = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    said, seconds = trickle(impatient.port, whole + b"GET /hea", b"a")
    assert seconds < LATE_SECONDS
    assert said.count(b"HTTP/1.1 200 ") == 1
    assert b'{"status":"ok"}HTTP/1.1 408 ' in said


@pytest.mark.parametrize("unit", [b"x", b""])
def test_a_body_that_trickles_is_cut_at_its_deadline(
    impatient: ThreadedServer, client: httpx.Client, unit: bytes
) -> None:
    ask(client, "a", session_id="slow-body").raise_for_status()
    before = session_of(client, "slow-body")
    beginning = CHAT + b'X-Session-Id: slow-body\r\nContent-Length: 100000\r\n\r\n{"messages": "'
    said, seconds = trickle(impatient.port, beginning, unit)
    assert BODY_SECONDS * 0.9 < seconds < LATE_SECONDS
    assert error_of(said)["code"] == "timeout"
    assert session_of(client, "slow-body") == before


def test_a_body_that_goes_on_after_its_refusal_is_cut_too(impatient: ThreadedServer) -> None:
    said, seconds = trickle(impatient.port, CHAT + b"Content-Length: 1000000000\r\n\r\n", b"x")
    assert error_of(said)["code"] == "body_too_large"
    assert BODY_SECONDS * 0.9 < seconds < LATE_SECONDS


def test_a_document_may_be_slow_but_not_stand_still(impatient: ThreadedServer, client: httpx.Client) -> None:
    head = b"POST /v1/sessions/slow-document/ingest HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
    line = b"Mary went to the garden.\n"
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=20) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        began, num_sent_bytes = time.monotonic(), 0
        while time.monotonic() < began + 2 * BODY_SECONDS:
            connection.sendall(b"%x\r\n%b\r\n" % (len(line), line))
            num_sent_bytes += len(line)
            time.sleep(TRICKLE_SECONDS)
        # What it has committed stays; the rest was never the session's.
        until(lambda: session_of(client, "slow-document")["open_ingest"] is not None)
        assert b'"code":"timeout"' in read_until(connection, b"}}")
    assert time.monotonic() - began < LATE_SECONDS
    mark = session_of(client, "slow-document")["open_ingest"]
    assert 0 < mark["offset"] <= num_sent_bytes
    rest = client.post(f"/v1/sessions/slow-document/ingest?offset={mark['offset']}", content=b"The end.\n")
    assert rest.status_code == 200, rest.text


def test_a_reader_that_never_reads_a_stream_is_cut_and_its_turn_taken_back(
    impatient: ThreadedServer, client: httpx.Client
) -> None:
    ask(client, "a", session_id="no-reader").raise_for_status()
    before = session_of(client, "no-reader")
    fields = {"max_tokens": 30_000, "ignore_eos": True, "stream": True, "session_id": "no-reader", "n": 4}
    with open_stream(impatient.port, "b", fields) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        until(lambda: impatient.num_slots_in_use > 0)
        until(lambda: impatient.num_slots_in_use == 0, seconds=60)
        assert session_of(client, "no-reader") == before
        assert ask(client, "c", session_id="no-reader").json()["session"]["version"] == 2


def test_a_reader_that_never_reads_a_plain_answer_has_its_connection_reset(impatient: ThreadedServer) -> None:
    body = json.dumps({"text": "a " * 40_000}).encode()
    request = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", impatient.port))
        connection.sendall(request % (len(body), body))
        began = time.monotonic()
        until(lambda: not _is_established(impatient.port, connection.getsockname()[1]), seconds=LATE_SECONDS)
        assert time.monotonic() - began > BODY_SECONDS * 0.9


def test_a_slow_client_keeps_nobody_else_waiting(impatient: ThreadedServer, client: httpx.Client) -> None:
    connections = [socket.create_connection(("127.0.0.1", impatient.port)) for _ in range(100)]
    try:
        for connection in connections:
            connection.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")
        began = time.monotonic()
        assert ask(client, "a").status_code == 200
        assert client.get("/health").status_code == 200
        assert time.monotonic() - began < 5
        assert metric_value(client.get("/metrics").text, "num_requests_running") == 0
    finally:
        for connection in connections:
            connection.close()


def _is_established(port: int, peer_port: int) -> bool:
    """Whether the server's end of a connection is open, as its kernel says."""
    local, remote = f":{port:04X}", f":{peer_port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(local) and fields[2].endswith(remote):
            return fields[3] == "01"
    return False

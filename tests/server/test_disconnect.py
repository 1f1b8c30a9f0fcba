"""Clients that go away: the turn is taken back, the lease returned, the slot free, within a step or two."""

import socket
import time

import httpx
import pytest

from tests.server.harness import ThreadedServer, ask, open_stream, read_until, session_of, until

ENDLESS = {"max_tokens": 30_000, "ignore_eos": True}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_takes_its_turn_back(
    server: ThreadedServer, client: httpx.Client, session_id: str, stream: bool
) -> None:
    ask(client, "a", session_id=session_id)
    before = session_of(client, session_id)
    with open_stream(server.port, "b", {"session_id": session_id, "stream": stream, **ENDLESS}) as connection:
        until(lambda: server.num_slots_in_use == 1)
        if stream:
            read_until(connection, b"data: ")
    until(lambda: server.num_slots_in_use == 0, seconds=5)
    assert session_of(client, session_id) == before
    # The lease is free at once.
    started = time.monotonic()
    assert ask(client, "c", session_id=session_id).json()["session"]["version"] == 2
    assert time.monotonic() - started < 5


def test_a_client_that_resets_the_connection_is_gone_too(
    server: ThreadedServer, client: httpx.Client, session_id: str
) -> None:
    with open_stream(server.port, "b", {"session_id": session_id, **ENDLESS}) as connection:
        until(lambda: server.num_slots_in_use == 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    until(lambda: server.num_slots_in_use == 0, seconds=5)
    assert client.get(f"/v1/sessions/{session_id}").status_code == 404


def test_a_client_that_leaves_while_it_waits_for_the_session_leaves_the_line(
    server: ThreadedServer, client: httpx.Client, session_id: str
) -> None:
    fields = {"session_id": session_id, "stream": True, **ENDLESS}
    with open_stream(server.port, "a", fields) as writing:
        read_until(writing, b"data: ")
        with open_stream(server.port, "b", fields):
            time.sleep(0.2)
        # The one that waited is gone: there is room for another to wait.
        until(lambda: _may_wait(server, fields), seconds=5)
    until(lambda: server.num_slots_in_use == 0, seconds=5)
    assert ask(client, "c", session_id=session_id).json()["session"]["version"] == 1


def _may_wait(server: ThreadedServer, fields: dict[str, object]) -> bool:
    with open_stream(server.port, "c", fields) as connection:
        connection.settimeout(0.3)
        try:
            return b"session_busy" not in connection.recv(4096)
        except TimeoutError:
            return True


def test_a_stateless_client_that_hangs_up_frees_its_slot(server: ThreadedServer) -> None:
    for _ in range(3):
        with open_stream(server.port, "a", ENDLESS):
            until(lambda: server.num_slots_in_use == 1)
        until(lambda: server.num_slots_in_use == 0, seconds=5)


def test_an_upload_that_stops_before_its_first_commit_leaves_no_session(
    server: ThreadedServer, client: httpx.Client, session_id: str
) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            f"POST /v1/sessions/{session_id}/ingest HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
            "Content-Length: 100\r\n\r\nhalf a line".encode()
        )
        time.sleep(0.2)
    # Whoever comes next finds the session free, and finds nothing.
    assert ask(client, "a", session_id=session_id).json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0

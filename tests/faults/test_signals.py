"""SIGTERM, once and twice, while turns and documents are in flight: who is asked to end ends in time, and well."""

import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.figures import tell
from tests.faults.writers import COMMIT_NUM_TOKENS, assert_nothing_was_lost_or_torn, new_writers, writing
from tests.redis_server import RedisServer
from tests.server.forked import ForkedServer, Forker
from tests.server.harness import ask, assert_refused, open_stream, read_until, session_of, until

DRAIN_SECONDS = 1.0
# What a busy machine may add to any end.
LATE_SECONDS = 5.0
NUM_ROUNDS = 8
ENDLESS: dict[str, Any] = {"max_tokens": 30_000, "ignore_eos": True}


@pytest.fixture(params=["local", pytest.param("redis", marks=pytest.mark.redis)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return f"local://{tmp_path / 'sessions'}"
    redis: RedisServer = request.getfixturevalue("own_redis")
    return redis.url


@pytest.fixture
def server(forker: Forker, model: Path, tmp_path: Path, store: str) -> Iterator[ForkedServer]:
    settings = {
        "model": str(model),
        "store": store,
        "drain_seconds": str(DRAIN_SECONDS),
        "lease_seconds": "0.2",
        "ingest_commit_tokens": str(COMMIT_NUM_TOKENS),
    }
    with ForkedServer(forker, tmp_path, **settings) as running:
        yield running


def seconds_to_end(server: ForkedServer) -> float:
    began = time.monotonic()
    server.wait_end()
    return time.monotonic() - began


def exit_statuses(server: ForkedServer) -> list[int]:
    return [int(status) for status in re.findall(r"^exit (\d+)$", server.log, re.MULTILINE)]


def test_all_that_is_in_flight_at_a_sigterm_ends_in_time_and_what_it_was_told_is_there(server: ForkedServer) -> None:
    answers: dict[str, httpx.Response] = {}

    def plain(name: str) -> None:
        with httpx.Client(base_url=server.client.base_url, timeout=60) as client:
            answers[name] = ask(client, "a", session_id=name, **ENDLESS)

    upload = b"POST /v1/sessions/document/ingest HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
    with ExitStack() as ends:
        streams = [
            ends.enter_context(open_stream(server.port, "b", {**ENDLESS, "stream": True, "session_id": f"stream-{n}"}))
            for n in range(3)
        ]
        for stream in streams:
            read_until(stream, b"data: ")
        threads = [threading.Thread(target=plain, args=(f"plain-{n}",)) for n in range(3)]
        for thread in threads:
            thread.start()
        document = ends.enter_context(open_stream(server.port, "c", {"session_id": "warm"}))
        read_until(document, b"}}")
        document.sendall(upload + b"Content-Length: 1000000\r\n\r\n" + b"Mary went to the garden.\n" * 40)
        until(lambda: server.client.get("/v1/sessions/document").status_code == httpx.codes.OK)
        server.signal(signal.SIGTERM)
        began = time.monotonic()
        until(lambda: server.client.get("/ready").status_code == httpx.codes.SERVICE_UNAVAILABLE)
        assert_refused(ask(server.client, "new"), 503, "draining")
        assert_refused(server.client.post("/v1/sessions/new/ingest", content=b"new"), 503, "draining")
        assert server.client.get("/health").status_code == httpx.codes.OK
        told = [read_until(stream, b"[DONE]") for stream in streams]
        for thread in threads:
            thread.join()
    server.wait_end()
    seconds = time.monotonic() - began
    assert seconds < DRAIN_SECONDS + LATE_SECONDS
    assert exit_statuses(server) == [0]
    assert all(b'"finish_reason":"length"' in answer for answer in told)
    assert [answers[f"plain-{n}"].json()["choices"][0]["finish_reason"] for n in range(3)] == ["length"] * 3
    server.start()
    for n in range(3):
        assert session_of(server.client, f"stream-{n}")["version"] == 1
        assert session_of(server.client, f"plain-{n}")["version"] == 1
    assert session_of(server.client, "document")["open_ingest"]["offset"] > 0
    assert server.client.get("/v1/sessions/new").status_code == httpx.codes.NOT_FOUND
    tell(f"three streams, three answers and a document in flight: ended after {seconds:.2f} s of {DRAIN_SECONDS}")


@pytest.mark.parametrize("num_signals", [1, 2])
def test_whoever_writes_while_the_server_is_told_to_end_loses_nothing(server: ForkedServer, num_signals: int) -> None:
    dice = random.Random(num_signals)
    writers = new_writers(server)
    longest = 0.0
    with writing(writers):
        for _ in range(NUM_ROUNDS):
            time.sleep(dice.uniform(0, 0.1))
            server.signal(signal.SIGTERM)
            if num_signals == 2:
                time.sleep(dice.uniform(0, 0.05))
                if server.is_running:
                    server.signal(signal.SIGTERM)
            longest = max(longest, seconds_to_end(server))
            server.start()
        # What was committed and never acknowledged is so when it is tried again.
        num_done = [writer.num_done for writer in writers]
        until(lambda: all(writer.num_done > before for writer, before in zip(writers, num_done, strict=True)))
    assert set(exit_statuses(server)) == {0}
    assert longest < (DRAIN_SECONDS if num_signals == 1 else 0) + LATE_SECONDS
    assert_nothing_was_lost_or_torn(server, writers)
    num_acknowledged = sum(writer.acknowledged for writer in writers)
    tell(f"{NUM_ROUNDS} ends by {num_signals} SIGTERM: {num_acknowledged} commits acknowledged, 0 lost, 0 torn,"
         f" the longest took {longest:.2f} s")  # fmt: skip


@pytest.fixture
def stuck(forker: Forker, model: Path, tmp_path: Path) -> Iterator[Callable[[], ForkedServer]]:
    """Makes a server, started, whose first commit does not return."""
    settings = {"model": str(model), "store": f"local://{tmp_path / 'sessions'}", "lease_seconds": "0.2"}
    running = ForkedServer(forker, tmp_path, **settings)

    def start() -> ForkedServer:
        running.launch(failpoints="commit.before_flip=1:hang")
        running.wait_ready()
        return running

    yield start
    running.kill9()
    running.client.close()


def test_a_second_sigterm_does_not_wait_for_a_store_that_hangs(stuck: Callable[[], ForkedServer]) -> None:
    server = stuck()
    with open_stream(server.port, "a", {"session_id": "s", "max_tokens": 3, "stream": True}) as stream:
        read_until(stream, b"data: ")
        time.sleep(0.2)
        server.signal(signal.SIGTERM)
        until(lambda: server.client.get("/ready").status_code == httpx.codes.SERVICE_UNAVAILABLE)
        server.signal(signal.SIGTERM)
        assert seconds_to_end(server) < LATE_SECONDS
    server.start()
    assert server.client.get("/v1/sessions/s").status_code == httpx.codes.NOT_FOUND
    assert ask(server.client, "a", session_id="s").json()["session"]["version"] == 1

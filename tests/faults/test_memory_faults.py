"""Memory: the process' stays flat whatever clients do, and a session's is never stored when it has gone bad."""

import asyncio
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from bench.summary import percentile
from tests.faults.figures import tell
from tests.faults.footprint import Footprint, peak_num_bytes
from tests.server.forked import ForkedServer, Forker
from tests.server.harness import (
    ThreadedServer,
    ask,
    assert_refused,
    metric_value,
    read_until,
    serving,
    session_of,
    tiny_folder,
    until,
    user,
)

POISON = "~"
MEBI = 2**20


@contextmanager
def poisoned(server: ThreadedServer) -> Iterator[None]:
    """While the block runs, the served model's numbers are not finite once it has read `POISON`."""
    token_id = server.runtime.serving().checkpoint.tokenizer.encode(POISON)[-1]

    def spoil(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not isinstance(module, nn.Embedding):
            return None
        return output.masked_fill((inputs[0] == token_id)[..., None], math.nan)

    # torch's own annotation leaves out that a hook may return another output.
    hook = register_module_forward_hook(cast(Any, spoil))
    try:
        yield
    finally:
        hook.remove()


def test_a_memory_that_is_not_finite_is_a_500_and_the_last_commit_stays(model: Path) -> None:
    settings = {"ingest_commit_tokens": "50"}
    with (
        serving(model, **settings) as server,
        poisoned(server),
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        ask(client, "one", session_id="s").raise_for_status()
        before = session_of(client, "s")
        refused = ask(client, POISON, session_id="s")
        assert_refused(refused, 500, "memory_diverged")
        assert refused.headers["x-should-retry"] == "false"
        assert session_of(client, "s") == before
        document = ("A line of a document that is read in several commits.\n" * 6) + POISON
        refused = client.post("/v1/sessions/s/ingest?document_id=d", json={"text": document})
        assert_refused(refused, 500, "memory_diverged")
        # What was committed of the document before it went bad stays, and is finite.
        told = session_of(client, "s")
        assert told["open_ingest"]["document_id"] == "d"
        client.post("/v1/sessions/s/rewind", json={"version": 1}).raise_for_status()
        assert session_of(client, "s")["tokens_digest"] == before["tokens_digest"]
        assert ask(client, "two", session_id="s").status_code == 200
        assert server.num_slots_in_use == 0


def test_a_gigabyte_body_is_refused_early_and_takes_no_memory(forker: Forker, model: Path, tmp_path: Path) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with ForkedServer(forker, tmp_path, model=str(model), store="memory://") as server:
        before = Footprint.of(server.pid).num_bytes
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(head + b"Content-Length: 1073741824\r\n\r\n")
            answer = read_until(connection, b"}}")
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'"code":"body_too_large"' in answer

        piece = b"10000\r\n" + b"x" * 2**16 + b"\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(2**30 // 2**16):
                connection.sendall(piece)
            answer = read_until(connection, b"}}")
        assert answer.startswith(b"HTTP/1.1 413 ")
        growth = peak_num_bytes(server.pid) - before
        tell(f"a gigabyte without a declared length: memory grew {growth / MEBI:.0f} MiB, the bound on a body is 32")
        assert growth < 80 * MEBI
        assert ask(server.client, "a").status_code == 200


def test_1000_sessions_that_come_and_go_leave_memory_as_it_was(forker: Forker, model: Path, tmp_path: Path) -> None:
    def come_and_go(server: ForkedServer, number: int) -> None:
        name = f"s-{number}"
        server.client.post("/v1/sessions", json={"id": name}).raise_for_status()
        text = {"text": f"Document {number} says that the code is {number}.\n"}
        server.client.post(f"/v1/sessions/{name}/ingest", json=text).raise_for_status()
        server.client.delete(f"/v1/sessions/{name}").raise_for_status()

    with ForkedServer(forker, tmp_path, model=str(model), store="memory://") as server:
        for number in range(200):
            come_and_go(server, number)
        before = Footprint.of(server.pid)
        for number in range(200, 1000):
            come_and_go(server, number)
        after = Footprint.of(server.pid)
        growth = after.num_bytes / before.num_bytes
        tell(f"resident memory after 1,000 sessions is {growth:.3f} × that after 200")
        assert growth < 1.05
        assert after.num_open <= before.num_open + 1
        assert metric_value(server.client.get("/metrics").text, 'sessions{tier="host"}') == 0


@pytest.fixture(scope="module")
def large_states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with states of 1.5 MB."""
    return tiny_folder(tmp_path_factory.mktemp("large"), key_width=64, value_width=64, feature_width=24)


def test_a_thousand_requests_at_once_are_served_or_told_429_and_leave_memory_flat(
    forker: Forker, large_states: Path, tmp_path: Path
) -> None:
    settings = {
        "model": str(large_states),
        "store": f"local://{tmp_path / 'sessions'}",
        "max_num_sequences": "2",
        "max_num_waiting": "30",
        "host_cache_bytes": "0",
        "inflight_state_bytes": str(12 * MEBI),
    }

    async def ask_a_thousand(base_url: str) -> Counter[tuple[str, int]]:
        limits = httpx.Limits(max_connections=None)

        async def one(client: httpx.AsyncClient, number: int) -> tuple[str, int]:
            session = f"/v1/sessions/s-{number % 20}"
            if number % 3 == 0:
                return "export", (await client.get(f"{session}/export")).status_code
            if number % 3 == 1:
                return "memory", (await client.get(f"{session}/memory")).status_code
            body = {"messages": [user("?")], "max_tokens": 1, "session_id": session[13:], "read_only": True}
            return "chat", (await client.post("/v1/chat/completions", json=body)).status_code

        async with httpx.AsyncClient(base_url=base_url, timeout=120, limits=limits) as client:
            return Counter(await asyncio.gather(*(one(client, number) for number in range(1000))))

    with ForkedServer(forker, tmp_path, **settings) as server:
        for number in range(20):
            ask(server.client, "a", session_id=f"s-{number}").raise_for_status()
        num_state_bytes = session_of(server.client, "s-0")["bytes"]
        before = Footprint.of(server.pid).num_bytes
        statuses = asyncio.run(ask_a_thousand(f"http://127.0.0.1:{server.port}"))
        growth = peak_num_bytes(server.pid) - before
        tell(
            f"1,000 at once, each with a state of {num_state_bytes / MEBI:.1f} MiB: memory grew"
            f" {growth / MEBI:.0f} MiB; {dict(sorted(statuses.items()))}"
        )
        assert {status for _, status in statuses} == {200, 429}
        assert min(statuses[kind, 200] for kind in ("export", "memory", "chat")) > 0
        assert growth < 1000 * num_state_bytes / 8
        until(lambda: metric_value(server.client.get("/metrics").text, "inflight_state_bytes") == 0)
        assert metric_value(server.client.get("/metrics").text, "inflight_state_bytes_max") == 12 * MEBI


@contextmanager
def health_asked(base_url: str) -> Iterator[list[float]]:
    """Seconds that each answer of /health took, one every few milliseconds until the end of the block."""
    seconds: list[float] = []
    is_over = threading.Event()

    def ask_on() -> None:
        with httpx.Client(base_url=base_url, timeout=60) as client:
            while not is_over.wait(0.005):
                began = time.perf_counter()
                client.get("/health").raise_for_status()
                seconds.append(time.perf_counter() - began)

    thread = threading.Thread(target=ask_on)
    thread.start()
    try:
        yield seconds
    finally:
        is_over.set()
        thread.join()


@pytest.mark.parametrize("value_width", [800, pytest.param(3_900, marks=pytest.mark.slow)], ids=["100 MB", "500 MB"])
def test_a_large_save_and_a_large_load_are_not_felt_by_health(forker: Forker, tmp_path: Path, value_width: int) -> None:
    shape = {"num_heads": 1, "key_width": 88, "value_width": value_width, "feature_width": 88}
    settings = {
        "model": str(tiny_folder(tmp_path, **shape)),
        "store": f"local://{tmp_path / 'sessions'}",
        "max_num_sequences": "1",
        "host_cache_bytes": "0",
    }
    with ForkedServer(forker, tmp_path, **settings) as server:
        ask(server.client, "a", session_id="s", max_tokens=1).raise_for_status()
        with health_asked(f"http://127.0.0.1:{server.port}") as seconds:
            for number in range(2):
                server.client.post("/v1/sessions/s/fork", json={"new_id": f"s-{number}"}).raise_for_status()
        num_bytes = session_of(server.client, "s")["bytes"]
    p99 = percentile(seconds, 99)
    tell(f"saves and loads of {num_bytes / 1e6:.0f} MB: /health p99 {1e3 * p99:.0f} ms of {len(seconds)}")
    assert len(seconds) > 20
    assert p99 < 0.1

"""Time that passes where nobody expects it: a writer that is asleep, a store that is slow, a clock that jumps."""

import itertools
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.engine.sessions_harness import text_of
from tests.faults.figures import tell
from tests.faults.proxy import Proxy
from tests.redis_server import RedisServer
from tests.server.forked import ForkedServer, Forker
from tests.server.harness import ask, open_stream, read_until, serving, session_of, until

LEASE_SECONDS = 0.3
SLOW_SECONDS = 0.15
NUM_TOKENS = 100
DAY_SECONDS = 86400.0


@pytest.mark.redis
@pytest.mark.parametrize("stream", [False, True])
def test_a_writer_that_sleeps_longer_than_its_lease_and_wakes_after_another_committed_is_refused_by_the_version(
    forker: Forker, model: Path, tmp_path: Path, own_redis: RedisServer, stream: bool
) -> None:
    settings = {"model": str(model), "store": own_redis.url, "lease_seconds": str(LEASE_SECONDS)}
    with (
        ForkedServer(forker, tmp_path, **settings) as sleeper,
        ForkedServer(forker, tmp_path, **settings) as other,
        ForkedServer(forker, tmp_path, model=str(model), store="memory://") as peaceful,
    ):
        for server in (sleeper, peaceful):
            ask(server.client, "one", session_id="s")
        fields = {"session_id": "s", "stream": stream, "max_tokens": 300, "ignore_eos": True}
        with open_stream(sleeper.port, "a turn that is slept through", fields) as turn:
            until(lambda: "atlas_num_requests_running 1.0" in sleeper.client.get("/metrics").text)
            sleeper.signal(signal.SIGSTOP)
            time.sleep(2 * LEASE_SECONDS)
            for server in (other, peaceful):
                assert ask(server.client, "two", session_id="s").json()["session"]["version"] == 2
            sleeper.signal(signal.SIGCONT)
            answer = read_until(turn, b"session_busy")
        if not stream:
            assert answer.startswith(b"HTTP/1.1 409 ")
        assert b"[DONE]" not in answer
        for server in (sleeper, peaceful):
            assert ask(server.client, "three", session_id="s").json()["session"]["version"] == 3
        told, wanted = session_of(other.client, "s"), session_of(peaceful.client, "s")
        assert (told["tokens_digest"], told["version"]) == (wanted["tokens_digest"], 3)


def gaps_between_tokens(client: httpx.Client, session_id: str) -> list[float]:
    """Seconds from one event of a stream to the next."""
    body = {"messages": [{"role": "user", "content": "go on"}], "max_tokens": NUM_TOKENS, "ignore_eos": True}
    body |= {"stream": True, "session_id": session_id, "temperature": 0}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        times = [time.monotonic() for line in response.iter_lines() if '"content"' in line]
    return [later - earlier for earlier, later in itertools.pairwise(times)]


@contextmanager
def others_writing(client: httpx.Client, num_sessions: int) -> Iterator[list[float]]:
    """Each its own session, turn after turn; the seconds of every turn."""
    is_over = threading.Event()
    seconds: list[float] = []

    def work(number: int) -> None:
        while not is_over.is_set():
            started = time.monotonic()
            assert ask(client, "another turn", session_id=f"other-{number}").status_code == 200
            seconds.append(time.monotonic() - started)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(num_sessions)]
    for thread in threads:
        thread.start()
    try:
        yield seconds
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


@pytest.mark.redis
def test_a_slow_redis_is_felt_by_those_who_wait_for_it_and_not_between_the_tokens_of_others(
    forker: Forker, model: Path, tmp_path: Path, own_redis: RedisServer
) -> None:
    """The gaps between a stream's tokens, beside three sessions that write: before, while and after Redis is slow."""
    with (
        Proxy(own_redis.port) as proxy,
        ForkedServer(forker, tmp_path, model=str(model), store=f"redis://127.0.0.1:{proxy.port}/0") as server,
    ):
        medians = []
        for delay_seconds in (0.0, SLOW_SECONDS, 0.0):
            proxy.delay_seconds = delay_seconds
            with others_writing(server.client, 3) as seconds:
                gaps = gaps_between_tokens(server.client, "s")
            assert min(seconds) > 3 * delay_seconds
            # Were tokens to wait for Redis, most of them would; single ones may wait for the machine.
            assert statistics.quantiles(gaps, n=10)[-1] < SLOW_SECONDS
            medians.append(statistics.median(gaps))
        before, meanwhile, after = medians
        tell(f"median gap between tokens: Redis quick {before * 1000:.1f} ms, slow {meanwhile * 1000:.1f} ms")
        assert meanwhile < 3 * max(before, after)


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the wall clock of this process, and so that of a server in one of its threads; monotonic time goes on."""
    wall_clock, offset = time.time, 0.0

    def by(seconds: float) -> None:
        nonlocal offset
        offset += seconds

    monkeypatch.setattr(time, "time", lambda: wall_clock() + offset)
    return by


@pytest.mark.parametrize("days", [1, -1])
@pytest.mark.parametrize("kind", ["memory", "local", pytest.param("redis", marks=pytest.mark.redis)])
def test_a_clock_that_jumps_a_day_ends_no_session_no_lease_and_no_document(
    model: Path, tmp_path: Path, request: pytest.FixtureRequest, kind: str, days: int, jump: Callable[[float], None]
) -> None:
    urls: dict[str, Callable[[], str]] = {
        "memory": lambda: "memory://",
        "local": lambda: f"local://{tmp_path / 'sessions'}",
        "redis": lambda: request.getfixturevalue("own_redis").url,
    }
    with (
        serving(model, store=urls[kind](), lease_seconds="30") as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        client.post("/v1/sessions", json={"id": "s", "ttl_seconds": 60}).raise_for_status()
        ask(client, "one", session_id="s")
        fields = {"session_id": "s", "stream": True, "max_tokens": 40, "ignore_eos": True}
        with open_stream(server.port, "two", fields) as turn:
            until(lambda: server.num_slots_in_use == 1)
            jump(days * DAY_SECONDS)
            # Two writers of one session: the second waits for the first, which still has its lease.
            assert ask(client, "three", session_id="s").json()["session"]["version"] == 3
            assert b'"version":2' in read_until(turn, b"[DONE]")
        jump(days * DAY_SECONDS)
        assert client.post("/v1/sessions/s/ingest", content=text_of(9)).status_code == 200
        told = session_of(client, "s")
        assert told["ttl_seconds"] == 60
        assert [it["id"] for it in client.get("/v1/sessions").json()["data"]] == ["s"]
        assert ask(client, "four", session_id="s").json()["session"]["version"] == told["version"] + 1

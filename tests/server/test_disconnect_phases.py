"""A client that goes away, plain or streamed, in each phase of its turn: nothing of it stays, but what was sent to be
committed."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.redis_server import RedisServer
from tests.server.harness import ThreadedServer, ask, open_stream, read_until, serving, session_of, until

ENDLESS: dict[str, Any] = {"max_tokens": 30_000, "ignore_eos": True}
LONG = "so long a word " * 20_000


@pytest.fixture
def server(model: Path, own_redis: RedisServer) -> Iterator[ThreadedServer]:
    """One slot, short steps, and a store that a test may stop for a while."""
    settings = {"max_num_sequences": "1", "max_num_batched_tokens": "16", "host_cache_bytes": "0"}
    with serving(model, store=own_redis.url, **settings) as running:
        yield running


class Stage:
    """A turn on its way in a session that has one turn already."""

    def __init__(self, server: ThreadedServer, redis: RedisServer, stream: bool, stack: ExitStack) -> None:
        self.server = server
        self.redis = redis
        self.stream = stream
        self.stack = stack

    def turn(self, text: str, **fields: Any) -> socket.socket:
        fields = {"session_id": "s", "stream": self.stream, **fields}
        return self.stack.enter_context(open_stream(self.server.port, text, fields))

    def pause_store(self) -> None:
        self.redis.pause()
        self.stack.callback(self.redis.resume)

    @property
    def stats(self) -> Any:
        return self.server.runtime.serving().engine.stats()

    def queued(self) -> None:
        """Another turn has the slot."""
        read_until(self.turn("a", session_id="other", **{**ENDLESS, "stream": True}), b"data: ")
        self.turn("b")
        until(lambda: self.stats.num_waiting == 1)

    def loading(self) -> None:
        self.pause_store()
        self.turn("b")
        until(lambda: self.server.runtime.serving().engine._places.num_held == 1)

    def prefilling(self) -> None:
        before = self.stats.prompt_tokens_total
        self.turn(LONG)
        until(lambda: self.stats.prompt_tokens_total > before + 50)

    def decoding(self) -> None:
        before = self.stats.generation_tokens_total
        self.turn("b", **ENDLESS)
        until(lambda: self.stats.generation_tokens_total > before + 5)

    def committing(self) -> None:
        """All is said; the store does not answer."""
        before = self.stats.generation_tokens_total
        self.turn("b", max_tokens=100, ignore_eos=True)
        until(lambda: self.stats.generation_tokens_total > before)
        self.pause_store()
        until(lambda: self.stats.generation_tokens_total == before + 100 and self.stats.num_running == 0)


PHASES: dict[str, tuple[Callable[[Stage], None], int]] = {
    "queued": (Stage.queued, 1),
    "loading": (Stage.loading, 1),
    "prefilling": (Stage.prefilling, 1),
    "decoding": (Stage.decoding, 1),
    # What was sent to the store is not taken back.
    "committing": (Stage.committing, 2),
}


@pytest.mark.redis
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_client_that_leaves_in_any_phase_leaves_nothing_behind(
    server: ThreadedServer, own_redis: RedisServer, phase: str, stream: bool
) -> None:
    reach, version = PHASES[phase]
    with httpx.Client(base_url=server.base_url, timeout=60) as client:
        ask(client, "a", session_id="s")
        before = session_of(client, "s")
        with ExitStack() as stack:
            reach(Stage(server, own_redis, stream, stack))
        serving = server.runtime.serving()
        until(lambda: server.num_slots_in_use == 0 and serving.engine.stats().num_waiting == 0, seconds=10)
        until(lambda: serving.engine._places.num_held == 0 and serving.sessions.budget.num_bytes == 0, seconds=10)
        after = session_of(client, "s")
        assert after["version"] == version
        assert (after == before) == (version == 1)
        # The lease is free: the next turn does not wait for it to run out.
        assert ask(client, "c", session_id="s").json()["session"]["version"] == version + 1
        text = client.get("/metrics").text
    num_left = 2 if phase == "queued" else 1
    assert f'atlas_request_success_total{{finished_reason="abort"}} {num_left}.0' in text

"""Streams that have nothing to say for a while: comments keep them alive, and all that they say is what it would be."""

import asyncio
import itertools
import json
import re
import socket
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from server.connections.keep_alive import COMMENT, begin
from server.connections.streaming import DONE, EventStream
from tests.redis_server import RedisServer
from tests.server.harness import ThreadedServer, ask, assert_refused, open_stream, read_until, sdk, serving, until, user

SECONDS = 0.1
ENDLESS: dict[str, Any] = {"max_tokens": 30_000, "ignore_eos": True, "stream": True}
HEAD_END = b"\r\n\r\n"


@pytest.fixture
def narrow(model: Path) -> Iterator[ThreadedServer]:
    """One slot, which a test may hold while another request waits for it."""
    with serving(model, max_num_sequences="1", stream_keepalive_seconds=str(SECONDS)) as server:
        yield server


def read_comments(connection: socket.socket, count: int) -> bytes:
    """What a socket says until it has sent so many comments, each in a piece of its own."""
    said = b""
    while said.count(COMMENT) < count:
        said += read_until(connection, b"\n\n")
    return said


def test_a_stream_that_waits_for_a_slot_is_kept_alive_and_answered_as_ever(narrow: ThreadedServer) -> None:
    with httpx.Client(base_url=narrow.base_url, timeout=60) as client, ExitStack() as first:
        expected = ask(client, "b", session_id="expected").json()["choices"][0]["message"]["content"]
        read_until(first.enter_context(open_stream(narrow.port, "a", ENDLESS)), b"data: ")
        fields = {"session_id": "s", "stream": True, "max_tokens": 4, "temperature": 0}
        with open_stream(narrow.port, "b", fields) as waiting:
            said = read_comments(waiting, 3)
            first.close()
            said += read_until(waiting, DONE)
    head, _, body = said.partition(HEAD_END)
    assert head.startswith(b"HTTP/1.1 200 ")
    # The last two are for proxies: keep nothing, and hold nothing back.
    for header in (b"x-session-id: s", b"cache-control: no-cache", b"x-accel-buffering: no"):
        assert header in head.lower()
    assert body.count(COMMENT) >= 3
    assert body.index(COMMENT) < body.index(b"data: ")
    texts = [json.loads(line)["choices"][0]["delta"].get("content", "") for line in re.findall(rb"data: ({.*})", body)]
    assert "".join(texts) == expected
    assert b'"finish_reason":"' in body


def test_the_stock_library_does_not_see_the_comments(narrow: ThreadedServer) -> None:
    with sdk(narrow.base_url) as library, ExitStack() as first:
        said = {"model": "atlas-tiny", "messages": [user("b")], "max_tokens": 4, "temperature": 0}
        plain = library.chat.completions.create(**said)
        read_until(first.enter_context(open_stream(narrow.port, "a", ENDLESS)), b"data: ")
        # Returns when the head is there: long before the first token.
        with library.chat.completions.create(**said, stream=True) as stream:
            assert narrow.runtime.serving().engine.stats().num_waiting == 1
            first.close()
            chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == plain.choices[0].finish_reason


def test_a_refusal_that_comes_at_once_has_its_status_and_one_that_comes_late_is_an_event_without_done(
    narrow: ThreadedServer,
) -> None:
    def refuse(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Embedding):
            raise ValueError("broken")

    with httpx.Client(base_url=narrow.base_url, timeout=60) as client, ExitStack() as first, ExitStack() as hooks:
        assert_refused(ask(client, "b", session_id="s", history="match", stream=True), 409, "session_diverged")
        read_until(first.enter_context(open_stream(narrow.port, "a", ENDLESS)), b"data: ")
        with open_stream(narrow.port, "b", {"session_id": "s", "stream": True}) as waiting:
            said = read_until(waiting, COMMENT)
            hooks.callback(register_module_forward_pre_hook(refuse).remove)
            said += read_until(waiting, b"0\r\n\r\n")
        assert client.get("/v1/sessions/s").status_code == 404
    assert said.startswith(b"HTTP/1.1 200 ")
    assert b'data: {"error":{' in said
    assert b'"code":"internal_error"' in said
    assert b"[DONE]" not in said


def test_without_the_setting_a_stream_says_nothing_before_it_has_something_to_say(model: Path) -> None:
    with (
        serving(model, max_num_sequences="1", stream_keepalive_seconds="0") as server,
        open_stream(server.port, "a", ENDLESS) as first,
    ):
        read_until(first, b"data: ")
        with open_stream(server.port, "b", {"stream": True}) as waiting:
            waiting.settimeout(5 * SECONDS)
            with pytest.raises(TimeoutError):
                waiting.recv(1)


def test_a_stream_whose_prompt_is_long_is_kept_alive_while_it_is_read(model: Path) -> None:
    with serving(model, max_num_batched_tokens="16", stream_keepalive_seconds=str(SECONDS)) as server:
        with open_stream(server.port, "so long a word " * 20_000, {"stream": True}) as reading:
            until(lambda: server.runtime.serving().engine.stats().prompt_tokens_total > 0)
            read_comments(reading, 3)
            assert server.runtime.serving().engine.stats().generation_tokens_total == 0
        until(lambda: server.num_slots_in_use == 0)


@pytest.mark.redis
def test_a_stream_is_kept_alive_while_its_answer_is_committed(model: Path, own_redis: RedisServer) -> None:
    settings = {"store": own_redis.url, "stream_keepalive_seconds": str(SECONDS)}
    with serving(model, **settings) as server:
        fields = {"session_id": "s", "stream": True, "max_tokens": 60, "ignore_eos": True}
        with open_stream(server.port, "b", fields) as committing:
            said = read_until(committing, b"data: ")
            own_redis.pause()
            try:
                until(lambda: server.runtime.serving().engine.stats().num_running == 0)
                said += read_comments(committing, 2)
                assert b'"finish_reason":"' not in said
            finally:
                own_redis.resume()
            said += read_until(committing, DONE)
    assert said.count(b'"finish_reason":"length"') == 1
    assert b'"version":1' in said


def test_a_document_that_comes_slowly_is_answered_with_comments_and_then_with_its_result(model: Path) -> None:
    def slowly() -> Iterator[bytes]:
        yield b"Mary went "
        time.sleep(5 * SECONDS)
        yield b"to the garden."

    headers = {"Accept": "text/event-stream", "Content-Type": "text/plain"}
    with (
        serving(model, stream_keepalive_seconds=str(SECONDS)) as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        answer = client.post("/v1/sessions/s/ingest", content=slowly(), headers=headers).content
    assert answer.startswith(2 * COMMENT)
    assert answer.count(b'"object":"session.ingest"') == 1
    assert answer.endswith(DONE)


def run_stream(gaps: list[float], seconds: float, receive: Receive | None = None) -> list[tuple[float, bytes]]:
    """What a stream sends that waits so long before each of its pieces, and when."""
    sent: list[tuple[float, bytes]] = []

    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body" and message["body"]:
            sent.append((time.monotonic(), message["body"]))

    async def pieces() -> AsyncGenerator[bytes, None]:
        for gap in gaps:
            await asyncio.sleep(gap)
            yield b"piece"

    async def test() -> None:
        first, rest = await begin(pieces(), seconds)
        stream = EventStream(first, rest, {}, keep_alive_seconds=seconds)
        await stream({"type": "http"}, receive or never, send)

    asyncio.run(test())
    return sent


def test_no_silence_is_longer_than_the_setting() -> None:
    sent = run_stream([0.35, 0.02, 0.33, 0.5], seconds=0.2)
    assert [body for _, body in sent if body != COMMENT] == [b"piece"] * 4
    gaps = [late - early for (early, _), (late, _) in itertools.pairwise(sent)]
    assert max(gaps) < 0.3
    assert 4 <= len([body for _, body in sent if body == COMMENT]) <= 8


def test_a_stream_that_has_something_to_say_has_no_comments() -> None:
    sent = run_stream([0.0] + [0.02] * 20, seconds=0.15)
    assert [body for _, body in sent] == [b"piece"] * 21


def test_leaving_before_the_first_piece_closes_the_source_and_so_does_leaving_before_the_rest() -> None:
    async def test() -> None:
        closed = asyncio.Event()

        async def pieces() -> AsyncGenerator[bytes, None]:
            try:
                await asyncio.sleep(3600)
                yield b"never"
            finally:
                closed.set()

        beginning = asyncio.create_task(begin(pieces(), 0))
        await asyncio.sleep(0.01)
        beginning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await beginning
        assert closed.is_set()
        closed.clear()
        first, rest = await begin(pieces(), 0.01)
        assert first == COMMENT
        async with aclosing(rest):
            reading = asyncio.ensure_future(anext(rest))
            await asyncio.sleep(0.01)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        assert closed.is_set()

    asyncio.run(test())

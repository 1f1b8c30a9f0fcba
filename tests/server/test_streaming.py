"""Streams whose readers are slow, gone, or failed by their source."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from starlette.types import Message

from server.connections.disconnect import run_until_disconnect
from server.connections.streaming import EventStream, EventTemplate, event, latest


async def numbers(count: int, closed: asyncio.Event | None = None) -> AsyncGenerator[int, None]:
    try:
        for number in range(count):
            await asyncio.sleep(0)
            yield number
    finally:
        if closed is not None:
            closed.set()


def test_a_slow_reader_of_progress_misses_some_and_never_the_last() -> None:
    """Else a client that reads nothing before it has sent everything, and the server, would wait for each other."""

    async def test() -> None:
        closed = asyncio.Event()
        seen = []
        async with aclosing(latest(numbers(1000, closed))) as items:
            async for item in items:
                seen.append(item)
                if len(seen) == 1:
                    # The source runs to its end while nobody reads.
                    await closed.wait()
        assert seen[-1] == 999
        assert len(seen) == 2

    asyncio.run(test())


def test_what_a_source_of_progress_raises_is_raised_after_its_last_item() -> None:
    async def failing() -> AsyncGenerator[int, None]:
        yield 1
        raise ValueError("broken")

    async def test() -> None:
        async with aclosing(latest(failing())) as items:
            assert await anext(items) == 1
            with pytest.raises(ValueError, match="broken"):
                await anext(items)

    asyncio.run(test())


def test_leaving_progress_early_closes_its_source() -> None:
    async def test() -> None:
        closed = asyncio.Event()
        async with aclosing(latest(numbers(10**9, closed))) as items:
            await anext(items)
        assert closed.is_set()

    asyncio.run(test())


async def endless(closed: asyncio.Event) -> AsyncGenerator[bytes, None]:
    async with aclosing(numbers(10**9, closed)) as source:
        async for number in source:
            yield str(number).encode()


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def gone() -> Message:
    return {"type": "http.disconnect"}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_an_event_from_a_template_is_the_event_itself(text: str) -> None:
    def value(content: str) -> dict[str, object]:
        return {"id": 'a"b', "choices": [{"delta": {"content": content}, "finish_reason": None}], "model": "é"}

    assert EventTemplate(value(EventTemplate.BLANK)).filled(text) == event(value(text))


def test_a_client_that_is_gone_before_its_stream_begins_closes_what_was_begun() -> None:
    async def test() -> None:
        closed = asyncio.Event()

        async def send(message: Message) -> None:
            await asyncio.Event().wait()

        rest = endless(closed)
        await anext(rest)
        with pytest.raises(ClientDisconnect):
            await EventStream(b"first", rest, {})({"type": "http"}, gone, send)
        assert closed.is_set()

    asyncio.run(test())


def test_work_for_a_client_that_is_gone_is_cancelled() -> None:
    async def test() -> None:
        cancelled = asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        with pytest.raises(ClientDisconnect):
            await run_until_disconnect(gone, work())
        assert cancelled.is_set()

    asyncio.run(test())


def test_a_result_that_is_there_wins_over_the_disconnect() -> None:
    async def test() -> None:
        async def work() -> int:
            return 7

        assert await run_until_disconnect(gone, work()) == 7
        assert await run_until_disconnect(never, work()) == 7

    asyncio.run(test())


def test_cancelling_the_request_cancels_its_work() -> None:
    async def test() -> None:
        cancelled = asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        request = asyncio.create_task(run_until_disconnect(never, work()))
        await asyncio.sleep(0.01)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert cancelled.is_set()

    asyncio.run(test())

"""Server-sent events: framing, and a response that stops working for a client that is gone."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.connections.disconnect import run_until_disconnect
from server.connections.keep_alive import KeepAlive
from server.middleware import server_send

DONE = b"data: [DONE]\n\n"
MEDIA_TYPE = "text/event-stream"

T = TypeVar("T")

encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + encode_json(value).encode() + b"\n\n"


class EventTemplate:
    """An event of which only one string changes: the rest is encoded once.

    value: is an event with `BLANK` in that string's place, and nowhere else.
    """

    BLANK = "\0"

    def __init__(self, value: Mapping[str, Any]) -> None:
        self._head, self._tail = event(value).split(encode_json(self.BLANK).encode())

    def filled(self, text: str) -> bytes:
        """What `event` gives with `text` in the place of the blank, byte for byte."""
        return self._head + encode_json(text).encode() + self._tail


class EventStream(Response):
    """Sends `first` and then what `rest` yields, one message each, and closes `rest` whatever happens.

    rest: has begun (`first` came out of it), so that closing it runs its clean-up.
    keep_alive_seconds: the longest that it says nothing; 0 is for ever.
    watches: whether a disconnect is noticed at once; False for those who are still reading the request's body.
    """

    def __init__(
        self,
        first: bytes,
        rest: AsyncGenerator[bytes, None],
        headers: Mapping[str, str],
        *,
        keep_alive_seconds: float = 0.0,
        watches: bool = True,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})
        del self.headers["content-length"]
        self.headers["content-type"] = MEDIA_TYPE
        self._first = first
        self._rest = rest
        self._keep_alive_seconds = keep_alive_seconds
        self._watches = watches

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._rest):
            if self._watches:
                await run_until_disconnect(receive, self._send_all(scope, send))
            else:
                await self._send_all(scope, send)

    async def _send_all(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with KeepAlive(server_send(scope, send), self._keep_alive_seconds) as body:
            await body.send(self._first)
            async for piece in self._rest:
                await body.send(piece)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def latest(source: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """What `source` yields, at the reader's pace: items that the reader is too slow for are skipped, never the last.

    For progress to a client that may not read before it has sent everything: `source` must not wait for it.
    """
    items: list[T] = []
    changed = asyncio.Event()

    async def pump() -> None:
        try:
            async with aclosing(source):
                async for item in source:
                    items[:] = [item]
                    changed.set()
        finally:
            changed.set()

    pumping = asyncio.create_task(pump())
    try:
        while True:
            await changed.wait()
            changed.clear()
            while items:
                yield items.pop()
            if pumping.done():
                break
        await pumping
    finally:
        pumping.cancel()
        await asyncio.gather(pumping, return_exceptions=True)

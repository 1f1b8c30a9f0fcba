"""`python -m bench.wire.bare_server KIND EVENT`: the least that sends the same bytes at the same pace.

`asgi`: an ASGI application of ten lines under uvicorn with httptools. `protocol`: asyncio alone, one write after the
other. An answer has as many events as the request's `max_tokens`, none without a body.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Callable

import uvicorn
from starlette.types import Receive, Scope, Send

from bench.wire.pace import INTERVAL_VARIABLE

HEADERS = [(b"content-type", b"text/event-stream")]
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def num_events_of(body: bytes) -> int:
    num_events: int = json.loads(body)["max_tokens"] if body else 0
    return num_events


class Clock:
    """Calls everybody who asked for it, once an interval."""

    def __init__(self, interval_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Callable[[], None]] = []
        self._due = self._loop.time()
        self._tick()

    def call(self, callback: Callable[[], None]) -> None:
        """At the next tick."""
        self._waiting.append(callback)

    async def tick(self) -> None:
        """The next one."""
        future = self._loop.create_future()
        self.call(lambda: future.set_result(None))
        await future

    def _tick(self) -> None:
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()
        self._due = max(self._loop.time(), self._due + self._interval_seconds)
        self._loop.call_at(self._due, self._tick)


class Protocol(asyncio.Protocol):
    def __init__(self, clock: Clock, event: bytes) -> None:
        self._clock = clock
        self._chunk = b"%x\r\n%b\r\n" % (len(event), event)
        self._num_left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """The request comes in one piece."""
        self._num_left = num_events_of(data.partition(b"\r\n\r\n")[2])
        self._transport.write(_HEAD)
        self._clock.call(self._send)

    def _send(self) -> None:
        if self._num_left:
            self._num_left -= 1
            self._transport.write(self._chunk)
            self._clock.call(self._send)
        else:
            self._transport.write(b"0\r\n\r\n")
            self._transport.close()


class Application:
    def __init__(self, clock: Clock, event: bytes) -> None:
        self._clock = clock
        self._event = event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        num_events = num_events_of((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        for _ in range(num_events):
            await self._clock.tick()
            await send({"type": "http.response.body", "body": self._event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def serve(kind: str, host: str, port: int, interval_seconds: float, event: bytes) -> None:
    clock = Clock(interval_seconds)
    if kind == "protocol":
        server = await asyncio.get_running_loop().create_server(lambda: Protocol(clock, event), host, port)
        await server.serve_forever()
    settings = uvicorn.Config(
        Application(clock, event),
        host=host,
        port=port,
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="warning",
    )
    await uvicorn.Server(settings).serve()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("asgi", "protocol"))
    parser.add_argument("event")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    given = parser.parse_args()
    asyncio.run(serve(given.kind, given.host, given.port, float(os.environ[INTERVAL_VARIABLE]), given.event.encode()))

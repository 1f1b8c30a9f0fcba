"""So many clients that stream one answer each and do as little as can be done with it: they count."""

from __future__ import annotations

import asyncio
import json
from types import TracebackType
from typing import Self

from bench.server_process import HOST

BEGINNING = b"data: "


class Readers:
    """Entering connects and asks; leaving waits until every answer has ended.

    Raises SystemExit on leaving when an answer had fewer events than it should.
    """

    def __init__(self, port: int, concurrency: int, max_tokens: int) -> None:
        self._port = port
        self._concurrency = concurrency
        self._max_tokens = max_tokens
        self._loop = asyncio.get_running_loop()
        self._readers: list[_Reader] = []
        self._num_begun = 0
        self.all_began: asyncio.Future[None] = self._loop.create_future()
        self.first_ended: asyncio.Future[None] = self._loop.create_future()

    @property
    def request(self) -> bytes:
        body = json.dumps(
            {
                "messages": [{"role": "user", "content": "Hello"}],
                "max_tokens": self._max_tokens,
                "ignore_eos": True,
                "stream": True,
            }
        ).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    @property
    def num_events(self) -> int:
        return sum(reader.num_events for reader in self._readers)

    @property
    def num_reads(self) -> int:
        return sum(reader.num_reads for reader in self._readers)

    async def __aenter__(self) -> Self:
        for _ in range(self._concurrency):
            _, reader = await self._loop.create_connection(lambda: _Reader(self), HOST, self._port)
            self._readers.append(reader)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.gather(*(reader.ended for reader in self._readers))
        fewest = min(reader.num_events for reader in self._readers)
        if fewest < self._max_tokens:
            raise SystemExit(f"bench: an answer of {self._max_tokens} tokens has {fewest} events")

    def began(self) -> None:
        self._num_begun += 1
        if self._num_begun == self._concurrency:
            self.all_began.set_result(None)

    def ended(self) -> None:
        if not self.first_ended.done():
            self.first_ended.set_result(None)


class _Reader(asyncio.Protocol):
    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self.num_events = 0
        self.num_reads = 0
        self._tail = b""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._readers.request)

    def data_received(self, data: bytes) -> None:
        # The kernel may have cut anywhere.
        data = self._tail + data
        self._tail = data[1 - len(BEGINNING) :]
        num_events = data.count(BEGINNING)
        if num_events and not self.num_events:
            self._readers.began()
        self.num_events += num_events
        self.num_reads += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._readers.ended()
        self.ended.set_result(None)

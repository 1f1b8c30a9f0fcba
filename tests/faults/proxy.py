"""A TCP proxy that does to a connection what networks do: it waits, cuts pieces small, loses replies, hangs up.

It knows requests and replies, and no protocol: a reply is what the server says between two requests of its client.

with Proxy(server.port, judge=lambda request: 0 if b"EVALSHA" in request else None) as proxy:
    connect_to(proxy.port)
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"

# Given a request: None lets its reply pass; n waits for all of it, lets n bytes of it pass, and hangs up.
Judge = Callable[[bytes], int | None]


def passes(request: bytes) -> None:
    """The judge that lets everything pass."""


def is_whole_http(reply: bytes) -> bool:
    """Whether an HTTP/1.1 reply with a length, or in chunks, has arrived to its end."""
    head, separator, body = reply.partition(b"\r\n\r\n")
    if not separator:
        return False
    lines = head.lower().split(b"\r\n")
    length = next(
        (line.removeprefix(b"content-length:") for line in lines if line.startswith(b"content-length:")), None
    )
    return body.endswith(b"0\r\n\r\n") if length is None else len(body) >= int(length)


class Proxy:
    """Between 127.0.0.1:`port` and the server on `server_port`, in a thread of its own.

    judge: is asked once per request, in the order of their replies.   is_whole: for the replies that it condemns.
    delay_seconds: what the server says waits so long.   piece_num_bytes: and arrives in pieces of at most this.
    """

    def __init__(
        self,
        server_port: int,
        judge: Judge = passes,
        is_whole: Callable[[bytes], bool] = bool,
        delay_seconds: float = 0.0,
        piece_num_bytes: int = 65536,
    ) -> None:
        self.judge = judge
        self.delay_seconds = delay_seconds
        self.piece_num_bytes = piece_num_bytes
        self.port = 0
        self.num_cut = 0
        self._server_port = server_port
        self._is_whole = is_whole
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._tasks: set[asyncio.Task[None]] = set()

    def hang_up(self) -> None:
        """Every connection ends now; new ones are welcome."""
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result()

    def __enter__(self) -> Self:
        self._thread.start()
        self._listener = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, HOST, 0), self._loop
        ).result()
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._listener.close)
        self.hang_up()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _hang_up(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            server_reader, server_writer = await asyncio.open_connection(HOST, self._server_port)
            exchange = _Exchange(self, self._is_whole, reader, writer, server_reader, server_writer)
            with suppress(OSError, asyncio.CancelledError):
                await exchange.run()
            await _close(server_writer)
        except OSError:
            # The server does not listen: neither do we.
            pass
        finally:
            await _close(writer)
            self._tasks.discard(task)


class _Exchange:
    """One connection. Ends when either side does, or by a judgement."""

    def __init__(
        self,
        proxy: Proxy,
        is_whole: Callable[[bytes], bool],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._is_whole = is_whole
        self._reader, self._writer = reader, writer
        self._server_reader, self._server_writer = server_reader, server_writer
        self._request = b""

    async def run(self) -> None:
        pumps = [asyncio.create_task(self._ask()), asyncio.create_task(self._answer())]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _ask(self) -> None:
        while piece := await self._reader.read(65536):
            self._request += piece
            self._server_writer.write(piece)
            await self._server_writer.drain()

    async def _answer(self) -> None:
        let_through: int | None = None
        held = b""
        while piece := await self._server_reader.read(65536):
            if self._request:
                # The first piece of a reply.
                let_through, self._request = self._proxy.judge(self._request), b""
            if let_through is None:
                await self._say(piece)
                continue
            held += piece
            if self._is_whole(held):
                self._proxy.num_cut += 1
                await self._say(held[:let_through])
                return

    async def _say(self, words: bytes) -> None:
        for start in range(0, len(words), self._proxy.piece_num_bytes):
            await asyncio.sleep(self._proxy.delay_seconds)
            self._writer.write(words[start : start + self._proxy.piece_num_bytes])
            await self._writer.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()

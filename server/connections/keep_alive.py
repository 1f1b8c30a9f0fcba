"""Comments in a stream that has nothing to say, or a proxy on the way would take it for dead.

A stream is silent while its request waits in the queue, while its prompt is read, and while its answer is committed.
Its head is sent with its first piece, so that a refusal has a status of its own, but not later than the first comment
is due; what fails afterwards is told inside the stream. Clients skip comments: they are part of server-sent events.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Self

from starlette.types import Send

COMMENT = b": keep-alive\n\n"


async def begin(pieces: AsyncGenerator[bytes, None], seconds: float) -> tuple[bytes, AsyncGenerator[bytes, None]]:
    """The first of the pieces and the rest; or a comment and all of them, when the first takes longer than `seconds`.

    seconds: 0 waits for the first piece as long as it takes. Raises what `pieces` does before the first.
    """
    first = asyncio.ensure_future(anext(pieces))
    try:
        await asyncio.wait([first], timeout=seconds or None)
    except asyncio.CancelledError:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        raise
    if first.done():
        return first.result(), pieces
    late = _late(first, pieces)
    return await anext(late), late


class KeepAlive:
    """Sends the pieces of a stream, which is silent for at most `seconds` while this is entered; 0 is for ever.

    Looks twice in that time whether something was sent, as a timer for each piece would cost more than sending it.
    """

    def __init__(self, send: Send, seconds: float) -> None:
        self._send = send
        self._seconds = seconds
        self._num_begun = 0
        self._num_sent = 0
        self._num_seen = 0
        self._timer: asyncio.TimerHandle | None = None
        self._sending: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._seconds:
            self._num_seen = -1
            self._look()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)

    async def send(self, piece: bytes) -> None:
        """Waits while the client takes nothing; who takes nothing for too long is the connection's affair."""
        self._num_begun += 1
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        self._num_sent += 1

    def _look(self) -> None:
        is_silent = self._num_sent == self._num_seen == self._num_begun
        if is_silent:
            # Whole pieces only come from here and from the stream itself, so none cuts another in two.
            self._sending = asyncio.create_task(self.send(COMMENT))
        self._num_seen = self._num_sent
        self._timer = asyncio.get_running_loop().call_later(self._seconds / 2, self._look)


async def _late(first: asyncio.Future[bytes], pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """A comment, then the first piece when it comes, then the rest; closing it closes `pieces`."""
    async with aclosing(pieces):
        try:
            yield COMMENT
            yield await first
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        async for piece in pieces:
            yield piece

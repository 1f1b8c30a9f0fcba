"""Clients that go away. The framework cancels nothing when they do, so whoever works for one asks here."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Send

T = TypeVar("T")


async def run_until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; when the client goes away first, `work` is cancelled and ClientDisconnect raised.

    For requests whose body has been read: `receive` says nothing more until the client is gone.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


class BodySender:
    """Sends a body piece by piece. A client that takes nothing for `stall_seconds` is gone: ClientDisconnect.

    One timer watches all the pieces, as setting one for each would cost more than sending it.

        async with BodySender(send, stall_seconds) as sender:
            await sender.send(piece)
    """

    def __init__(self, send: Send, stall_seconds: float) -> None:
        self._send = send
        self._stall_seconds = stall_seconds
        self._loop = asyncio.get_running_loop()
        self._limit = asyncio.timeout(None)
        self.num_sent = 0
        # When the piece that is under way was handed over.
        self._began: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        await self._limit.__aenter__()
        self._timer = self._loop.call_later(self._stall_seconds, self._look)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._timer is not None
        self._timer.cancel()
        try:
            await self._limit.__aexit__(exc_type, exc, traceback)
        except TimeoutError as error:
            # Only what the limit has made of a cancellation: a TimeoutError of the block's own passes it by.
            raise ClientDisconnect from error

    async def send(self, piece: bytes) -> None:
        self._began = self._loop.time()
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        self._began = None
        self.num_sent += 1

    @property
    def is_sending(self) -> bool:
        return self._began is not None

    def _look(self) -> None:
        now = self._loop.time()
        due = (now if self._began is None else self._began) + self._stall_seconds
        if due <= now:
            self._limit.reschedule(now)
        else:
            self._timer = self._loop.call_at(due, self._look)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

"""A file as an answer: its length is told first, and it is sent at the client's pace."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.stores.base import Buffer
from server.connections.disconnect import run_until_disconnect
from server.input.bodies import PIECE_NUM_BYTES


class Download(Response):
    """The bytes of `parts`, one after the other; `room` is what they are held in, and is left when they are sent, or
    the client is gone."""

    media_type = "application/octet-stream"

    def __init__(
        self,
        parts: Sequence[Buffer],
        file_name: str,
        headers: Mapping[str, str],
        *,
        room: AbstractAsyncContextManager[object],
    ) -> None:
        """file_name: of letters, digits and `._-`."""
        self._views = [memoryview(part).cast("B") for part in parts]
        super().__init__(headers={"Content-Disposition": f'attachment; filename="{file_name}"', **headers})
        self.headers["content-length"] = str(sum(view.nbytes for view in self._views))
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._room:
            await run_until_disconnect(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for view in self._views:
            for start in range(0, view.nbytes, PIECE_NUM_BYTES):
                piece = bytes(view[start : start + PIECE_NUM_BYTES])
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

"""Request bodies: bounded in size before they are parsed, and in time while they arrive.

A body that stands still is dropped. One of bounded size must also come at a least rate: it is of no use before it is
whole, and holds memory meanwhile. A document is read as it comes, however slowly.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from server.errors import BodyTooLarge, RequestTimeout, UnsupportedMediaType
from server.input.strict_json import parse_object

# Parsing and hashing more than this would be felt by everybody else's stream.
MAX_INLINE_NUM_BYTES = 2**20
PIECE_NUM_BYTES = 2**16
# What a bounded body has to keep up with, once it has had its idle time.
LEAST_BYTES_PER_SECOND = 2**13

T = TypeVar("T")


def media_type(request: Request) -> str:
    """The Content-Type without its parameters. Raises UnsupportedMediaType for encodings that are not ours."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("compressed bodies are not supported")
    kind, *parameters = (part.strip().lower() for part in request.headers.get("content-type", "").split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "charset" and value.strip('"') not in ("utf-8", "utf8", "us-ascii"):
            raise UnsupportedMediaType("only UTF-8 is supported")
    return kind


async def read_pieces(
    request: Request, idle_seconds: float, least_bytes_per_second: float = 0.0
) -> AsyncGenerator[bytes, None]:
    """The body as it arrives. Raises RequestTimeout when it stands still for so long, or is that much behind the least
    rate, and ClientDisconnect when it is cut."""
    loop = asyncio.get_running_loop()
    began, num_bytes = loop.time(), 0
    while True:
        due = loop.time() + idle_seconds
        if least_bytes_per_second:
            due = min(due, began + idle_seconds + num_bytes / least_bytes_per_second)
        try:
            async with asyncio.timeout_at(due):
                message = await request.receive()
        except TimeoutError as error:
            raise RequestTimeout("the body did not arrive in time") from error
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if piece := message.get("body", b""):
            num_bytes += len(piece)
            yield piece
        if not message.get("more_body", False):
            return


async def read_octets(request: Request, buffer: memoryview, idle_seconds: float) -> memoryview:
    """The part of `buffer` that the body has filled. Raises UnsupportedMediaType, RequestTimeout, and BodyTooLarge for
    a body that does not fit."""
    if media_type(request) not in ("application/octet-stream", ""):
        raise UnsupportedMediaType("the body must be application/octet-stream")
    num_bytes = 0
    async for piece in _read_at_most(request, buffer.nbytes, idle_seconds):
        buffer[num_bytes : num_bytes + len(piece)] = piece
        num_bytes += len(piece)
    return buffer[:num_bytes]


async def read_json(
    request: Request,
    max_num_bytes: int,
    idle_seconds: float,
    understand: Callable[[dict[str, Any]], T],
    *,
    may_be_absent: bool = False,
) -> T:
    """What the JSON object of the body asks for; `understand` may run in another thread. Raises UnsupportedMediaType,
    BodyTooLarge, RequestTimeout, InvalidRequest, InvalidUnicode, and what `understand` does."""
    kind = media_type(request)
    if kind != "application/json" and not (may_be_absent and not kind):
        raise UnsupportedMediaType("the body must be application/json")
    raw = bytearray()
    async for piece in _read_at_most(request, max_num_bytes, idle_seconds):
        raw += piece
    if may_be_absent and not raw:
        return understand({})
    return await off_loop_if_large(len(raw), lambda: understand(parse_object(bytes(raw))))


async def _read_at_most(request: Request, max_num_bytes: int, idle_seconds: float) -> AsyncGenerator[bytes, None]:
    """Raises BodyTooLarge before the first byte that is too many, and before any when the length is declared."""
    too_large = BodyTooLarge(f"the body is larger than {max_num_bytes} bytes")
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > max_num_bytes:
        raise too_large
    num_bytes = 0
    async with aclosing(read_pieces(request, idle_seconds, LEAST_BYTES_PER_SECOND)) as pieces:
        async for piece in pieces:
            num_bytes += len(piece)
            if num_bytes > max_num_bytes:
                raise too_large
            yield piece


async def off_loop_if_large(num_bytes: int, work: Callable[[], T]) -> T:
    """Runs `work`, which is about so many bytes, where it holds up nobody."""
    return work() if num_bytes <= MAX_INLINE_NUM_BYTES else await asyncio.to_thread(work)


async def cut_in_pieces(raw: bytes) -> AsyncGenerator[bytes, None]:
    """Bytes that are here already, in the form of `read_pieces`."""
    for start in range(0, len(raw), PIECE_NUM_BYTES):
        yield raw[start : start + PIECE_NUM_BYTES]

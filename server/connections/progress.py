"""Long work, told while it goes on: progress events, then the result, or the error that ended it."""

import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from engine.errors import AtlasError
from server.connections.keep_alive import begin
from server.connections.streaming import DONE, EventStream, event
from server.dependencies import runtime_of
from server.errors import error_body
from server.middleware import RequestContext, refused

T = TypeVar("T")
_logger = logging.getLogger(__name__)


async def progress_stream(
    request: Request,
    steps: AsyncGenerator[T, None],
    body_of: Callable[[T], Mapping[str, Any]],
    headers: Mapping[str, str],
    *,
    watches: bool = True,
) -> EventStream:
    """A stream with an event for each step. Raises what comes before it has begun (`keep_alive.begin`), and tells in an
    event what comes after that. watches: as in EventStream."""
    config = runtime_of(request).config
    has_begun = False

    async def events() -> AsyncGenerator[bytes, None]:
        async with aclosing(steps):
            try:
                async for step in steps:
                    yield event(body_of(step))
            except Exception as error:
                if not has_begun or isinstance(error, ClientDisconnect):
                    raise
                # Boundary: the status has been sent, so whatever failed is told inside the stream.
                if not isinstance(error, AtlasError):
                    _logger.exception("a request failed after its first event")
                refused(runtime_of(request).metrics, RequestContext.of(request), error)
                yield event(error_body(error))
                return
            yield DONE

    first, rest = await begin(events(), config.stream_keepalive_seconds)
    has_begun = True
    return EventStream(first, rest, headers, keep_alive_seconds=config.stream_keepalive_seconds, watches=watches)

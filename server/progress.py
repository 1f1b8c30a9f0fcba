"""Long work, told while it goes on: progress events, then the result, or the error that ended it."""

import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from engine.errors import AtlasError
from server.dependencies import runtime_of
from server.errors import error_body
from server.middleware import RequestContext, refused
from server.streaming import DONE, event

T = TypeVar("T")
_logger = logging.getLogger(__name__)


async def progress_events(
    request: Request, steps: AsyncGenerator[T, None], body_of: Callable[[T], Mapping[str, Any]]
) -> AsyncGenerator[bytes, None]:
    """An event for each step. Raises what comes before the first, and tells in an event what comes after it."""
    is_first = True
    async with aclosing(steps):
        try:
            async for step in steps:
                yield event(body_of(step))
                is_first = False
        except Exception as error:
            if is_first or isinstance(error, ClientDisconnect):
                raise
            # Boundary: the status has been sent, so whatever failed is told inside the stream.
            if not isinstance(error, AtlasError):
                _logger.exception("a request failed after its first event")
            refused(runtime_of(request).metrics, RequestContext.of(request), error)
            yield event(error_body(error))
            return
        yield DONE

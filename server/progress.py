"""Long work, told while it goes on: progress events, then the result, or the error that ended it."""

import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect

from engine.errors import AtlasError
from server.errors import code_of, error_body, status_of
from server.runtime import Runtime
from server.streaming import DONE, event

T = TypeVar("T")
_logger = logging.getLogger(__name__)


async def progress_events(
    runtime: Runtime, steps: AsyncGenerator[T, None], body_of: Callable[[T], Mapping[str, Any]]
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
            runtime.metrics.refused(status_of(error), code_of(error))
            yield event(error_body(error))
            return
        yield DONE

"""Long reading, charged to whom it is for as it goes on: what was read is paid before more is."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from starlette.requests import Request

from engine.sessions import IngestProgress, IngestResult, RepeatedIngest, ReplayProgress, ReplayResult
from server.dependencies import runtime_of
from server.middleware import RequestContext

# A server that is to end does not wait for debts.
LOOK_SECONDS = 0.5

Step = TypeVar("Step", bound=IngestProgress | IngestResult | ReplayProgress | ReplayResult)


async def paid(request: Request, steps: AsyncGenerator[Step, None]) -> AsyncGenerator[Step, None]:
    """What `steps` yields, each told at once and followed by the next when the caller's tokens allow it.

    Raises RateLimited before the first when there are none, and Draining between two, beside what `steps` does.
    """
    allowance = RequestContext.of(request).allowance
    num_charged_tokens = 0
    async with aclosing(steps):
        allowance.check_tokens()
        async for step in steps:
            if not isinstance(step, RepeatedIngest):
                allowance.charge_tokens(step.num_tokens - num_charged_tokens)
                num_charged_tokens = step.num_tokens
            yield step
            if isinstance(step, IngestProgress | ReplayProgress):
                while (seconds := allowance.debt_seconds) > 0:
                    runtime_of(request).serving()
                    await asyncio.sleep(min(seconds, LOOK_SECONDS))

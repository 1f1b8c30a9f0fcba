"""Engines with their threads, for tests that need an event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from atlas_model.checkpoint import Checkpoint
from engine.config import EngineConfig
from engine.engine import Engine
from tests.engine.harness import SMALL, tiny


@asynccontextmanager
async def running(config: EngineConfig = SMALL, checkpoint: Checkpoint | None = None) -> AsyncIterator[Engine]:
    engine = Engine(checkpoint or tiny(), config)
    engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def until(condition: Callable[[], bool]) -> None:
    # The thread's numbers cannot be awaited.
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.002)

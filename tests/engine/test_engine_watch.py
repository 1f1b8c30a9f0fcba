"""An engine whose thread hangs or dies is noticed, and one that works, rests or takes its time is not."""

import asyncio
import threading
import time

import pytest
from torch import Tensor

from engine.config import EngineConfig
from engine.engine import Engine, step_timeout_seconds
from engine.errors import EngineDead
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import Sequence, SequenceOutput
from tests.engine.engines import running, until
from tests.engine.harness import checkpoint_that_first, checkpoint_that_raises_at, prompt
from tests.engine.sessions_harness import ENDLESS, in_loop

DEADLY = 299
# The shortest that is looked for: an idle thread gives a sign of life every second.
CONFIG = EngineConfig(max_num_sequences=1, step_timeout_seconds=2.0)


def asked(name: str, params: SamplingParams = ENDLESS) -> Sequence:
    return Sequence(name, prompt(name), params)


async def outputs_of(engine: Engine, sequence: Sequence) -> list[SequenceOutput]:
    return [output async for output in engine.generate(sequence)]


def test_a_step_that_does_not_end_is_a_dead_engine_to_all_who_wait_and_to_all_who_come() -> None:
    is_over = threading.Event()

    def hang(token_ids: Tensor) -> None:
        if bool((token_ids == DEADLY).any()):
            is_over.wait()

    async def test() -> None:
        async with running(CONFIG, checkpoint_that_first(hang)) as engine:
            watching = asyncio.create_task(engine.watch())
            tasks = [asyncio.create_task(outputs_of(engine, Sequence("deadly", [DEADLY] * 5, ENDLESS)))]
            await until(lambda: engine.stats().num_waiting == 0)
            tasks.append(asyncio.create_task(outputs_of(engine, asked("waits"))))
            began = time.monotonic()
            assert "more than 2 s" in await watching
            assert 2 <= time.monotonic() - began < 20
            assert not engine.is_alive
            assert all(isinstance(each, EngineDead) for each in await asyncio.gather(*tasks, return_exceptions=True))
            with pytest.raises(EngineDead):
                await outputs_of(engine, asked("late"))
            await engine.stop()
            is_over.set()

    try:
        in_loop(test)
    finally:
        is_over.set()


def test_a_thread_that_dies_is_noticed_within_a_second_or_two() -> None:
    async def test() -> None:
        async with running(CONFIG, checkpoint_that_raises_at(DEADLY, SystemExit())) as engine:
            watching = asyncio.create_task(engine.watch())
            with pytest.raises(EngineDead):
                await outputs_of(engine, Sequence("deadly", [DEADLY] * 5, ENDLESS))
            began = time.monotonic()
            assert await watching == "the engine died"
            assert time.monotonic() - began < 10

    in_loop(test)


def test_an_engine_that_works_or_rests_or_takes_long_for_a_step_is_alive() -> None:
    def take_long(token_ids: Tensor) -> None:
        if bool((token_ids == DEADLY).any()):
            time.sleep(1.0)

    async def test() -> None:
        async with running(CONFIG, checkpoint_that_first(take_long)) as engine:
            watching = asyncio.create_task(engine.watch())
            working = asyncio.create_task(outputs_of(engine, asked("works")))
            await asyncio.sleep(2.5)
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            await engine.feed(Sequence("slow", [DEADLY] * 5))
            await asyncio.sleep(3.0)
            assert engine.is_alive
            assert not watching.done()
            watching.cancel()

    in_loop(test)


def test_the_bound_on_a_step_grows_with_the_work_of_one() -> None:
    assert step_timeout_seconds(3_000_000, 2048) < 130
    assert 1000 < step_timeout_seconds(1_300_000_000, 2048) < 3600

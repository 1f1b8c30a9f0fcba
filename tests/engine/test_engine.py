"""The thread and the bridge: real threads, real event loops, the tiny model."""

import asyncio
import dataclasses
from contextlib import aclosing

import pytest

from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import AtlasError, Draining, EngineDead, InvalidRequest, QueueFull
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import FinishReason, Sequence, SequenceOutput
from tests.engine.engines import running, until
from tests.engine.harness import SMALL, answer, assert_same_session, checkpoint_that_raises_at, new_core, prompt, tiny
from tests.engine.sessions_harness import in_loop

PARAMS = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
ENDLESS = dataclasses.replace(PARAMS, max_tokens=100_000)


def asked(name: str, params: SamplingParams | None = PARAMS) -> Sequence:
    return Sequence(name, prompt(name), params)


async def outputs_of(engine: Engine, sequence: Sequence) -> list[SequenceOutput]:
    return [output async for output in engine.generate(sequence)]


def test_what_comes_over_the_bridge_is_what_the_core_says_one_message_per_step() -> None:
    async def test() -> None:
        async with running() as engine:
            outputs = await outputs_of(engine, asked("hello"))
        expected = answer(new_core(), asked("hello"))
        assert [output.token_ids for output in outputs] == [(token_id,) for token_id in expected.token_ids]
        assert "".join(output.text for output in outputs) == expected.text
        assert outputs[-1].finish_reason is FinishReason.LENGTH
        assert outputs[-1].state is not None
        assert_same_session(outputs[-1].state, expected.state, tolerance=0)

    in_loop(test)


def test_many_at_once_all_get_their_own_answers() -> None:
    async def test() -> None:
        names = [f"question {number}" for number in range(10)]
        async with running() as engine:
            answers = await asyncio.gather(*(outputs_of(engine, asked(name)) for name in names))
        for name, outputs in zip(names, answers, strict=True):
            token_ids = tuple(token_id for output in outputs for token_id in output.token_ids)
            assert token_ids == answer(new_core(), asked(name)).token_ids

    in_loop(test)


def test_a_feed_returns_the_state_that_it_left() -> None:
    async def test() -> None:
        async with running() as engine:
            output = await engine.feed(asked("a book", params=None))
        assert output.finish_reason is FinishReason.STOP
        assert output.state is not None
        assert_same_session(output.state, answer(new_core(), asked("a book", params=None)).state, tolerance=0)

    in_loop(test)


def test_closing_the_iterator_aborts_the_sequence() -> None:
    async def test() -> None:
        async with running() as engine:
            async with aclosing(engine.generate(asked("hello", ENDLESS))) as outputs:
                async for _ in outputs:
                    break
                assert engine.stats().num_slots_in_use == 1
            await until(lambda: engine.stats().num_slots_in_use == 0)
            assert len(await outputs_of(engine, asked("again"))) == PARAMS.max_tokens

    in_loop(test)


def test_cancelling_the_task_aborts_the_sequence_whether_it_waits_or_runs() -> None:
    async def test() -> None:
        config = EngineConfig(max_num_sequences=1)
        async with running(config) as engine:
            tasks = [asyncio.create_task(outputs_of(engine, asked(name, ENDLESS))) for name in ("runs", "waits")]
            await until(lambda: (engine.stats().num_running, engine.stats().num_waiting) == (1, 1))
            tasks[1].cancel()
            await until(lambda: engine.stats().num_waiting == 0)
            tasks[0].cancel()
            await until(lambda: engine.stats().num_slots_in_use == 0)
            assert all(isinstance(each, asyncio.CancelledError) for each in await _results(tasks))

    in_loop(test)


def test_an_error_of_one_sequence_is_raised_to_its_reader_and_to_nobody_else() -> None:
    async def test() -> None:
        async with running(checkpoint=checkpoint_that_raises_at(299, ValueError("broken"))) as engine:
            tasks = [
                asyncio.create_task(outputs_of(engine, sequence))
                for sequence in (asked("hello"), Sequence("culprit", [299] * 5, PARAMS))
            ]
            good, bad = await _results(tasks)
            assert isinstance(good, list)
            assert isinstance(bad, AtlasError)
            assert engine.is_alive

    in_loop(test)


def test_the_death_of_the_thread_ends_all_who_wait_and_refuses_who_come() -> None:
    async def test() -> None:
        # SystemExit is no Exception: it is not one sequence's failure, it ends the thread.
        async with running(checkpoint=checkpoint_that_raises_at(299, SystemExit())) as engine:
            tasks = [asyncio.create_task(outputs_of(engine, asked(name, ENDLESS))) for name in ("one", "two")]
            await until(lambda: engine.stats().num_running == 2)
            tasks.append(asyncio.create_task(outputs_of(engine, Sequence("deadly", [299] * 5, PARAMS))))
            assert all(isinstance(each, EngineDead) for each in await _results(tasks))
            assert not engine.is_alive
            with pytest.raises(EngineDead):
                await outputs_of(engine, asked("late"))

    in_loop(test)


def test_a_full_queue_refuses_at_once_and_has_room_again_after_an_end() -> None:
    async def test() -> None:
        config = EngineConfig(max_num_sequences=1, max_num_waiting=1)
        async with running(config) as engine:
            tasks = [asyncio.create_task(outputs_of(engine, asked(name, ENDLESS))) for name in ("one", "two")]
            await until(lambda: engine.stats().num_waiting == 1)
            with pytest.raises(QueueFull):
                await outputs_of(engine, asked("three"))
            tasks[0].cancel()
            tasks[1].cancel()
            await _results(tasks)
            assert len(await outputs_of(engine, asked("three"))) == PARAMS.max_tokens

    in_loop(test)


def test_one_of_several_tenants_cannot_fill_the_queue_for_the_others() -> None:
    async def test() -> None:
        config = EngineConfig(max_num_sequences=1, max_num_waiting=3, is_multi_tenant=True)
        async with running(config) as engine:
            of_one = [
                asyncio.create_task(outputs_of(engine, Sequence(name, prompt(name), ENDLESS, tenant="one")))
                for name in ("a", "b")
            ]
            await until(lambda: engine.stats().num_waiting == 1)
            with pytest.raises(QueueFull):
                await outputs_of(engine, Sequence("c", prompt("c"), PARAMS, tenant="one"))
            of_other = asyncio.create_task(outputs_of(engine, Sequence("d", prompt("d"), PARAMS, tenant="other")))
            await until(lambda: engine.stats().num_waiting == 2)
            of_one[0].cancel()
            # The slot goes to the tenant that has had none, though the other one's second request is older and endless.
            assert len(await of_other) == PARAMS.max_tokens
            of_one[1].cancel()
            await _results(of_one)

    in_loop(test)


def test_what_the_core_would_refuse_is_refused_before_it_is_queued() -> None:
    async def test() -> None:
        async with running() as engine:
            with pytest.raises(InvalidRequest):
                await outputs_of(engine, Sequence("odd", [10**6], PARAMS))
            task = asyncio.create_task(outputs_of(engine, asked("twin", ENDLESS)))
            await until(lambda: engine.stats().num_running == 1)
            with pytest.raises(InvalidRequest):
                await outputs_of(engine, asked("twin"))
            task.cancel()
            await _results([task])

    in_loop(test)


def test_drain_lets_what_runs_finish_and_takes_nothing_more() -> None:
    async def test() -> None:
        async with running() as engine:
            task = asyncio.create_task(outputs_of(engine, asked("hello")))
            await until(lambda: engine.stats().num_running == 1 or task.done())
            drain = asyncio.create_task(engine.drain(timeout_seconds=30))
            await asyncio.sleep(0)
            with pytest.raises(Draining):
                await outputs_of(engine, asked("late"))
            await drain
            assert len(await task) == PARAMS.max_tokens

    in_loop(test)


def test_drain_ends_with_length_what_is_still_writing_when_the_time_is_up() -> None:
    async def test() -> None:
        async with running() as engine:
            writer = asyncio.create_task(outputs_of(engine, asked("hello", ENDLESS)))
            await until(lambda: engine.stats().generation_tokens_total > 3)
            book = asyncio.create_task(engine.feed(Sequence("book", [9] * 200_000)))
            await until(lambda: engine.stats().num_running == 2)
            await engine.drain(timeout_seconds=0.05)
            last = (await writer)[-1]
            assert last.finish_reason is FinishReason.LENGTH
            assert last.state is not None
            with pytest.raises(Draining):
                await book

    in_loop(test)


def test_stop_ends_whoever_still_waits_and_twice_is_safe() -> None:
    async def test() -> None:
        async with running() as engine:
            task = asyncio.create_task(outputs_of(engine, asked("hello", ENDLESS)))
            await until(lambda: engine.stats().num_running == 1)
            await engine.stop()
            await engine.stop()
            assert isinstance((await _results([task]))[0], EngineDead)
            assert not engine.is_alive

    in_loop(test)


def test_an_engine_that_was_never_started_refuses() -> None:
    async def test() -> None:
        with pytest.raises(EngineDead):
            await outputs_of(Engine(tiny(), SMALL), asked("hello"))

    in_loop(test)


async def _results(tasks: list[asyncio.Task[list[SequenceOutput]]]) -> list[list[SequenceOutput] | BaseException]:
    return await asyncio.gather(*tasks, return_exceptions=True)

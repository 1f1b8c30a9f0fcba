"""Device, host, store: a session goes on the same from each, and costs no more than its tier allows."""

import asyncio
import gc
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.errors import StoreFull, StoreUnavailable
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import SequenceState
from engine.sessions import SessionConfig, Turn
from engine.stores.base import Head, NewGeneration, SessionKey, Store
from engine.stores.local import LocalStore
from engine.stores.memory import MemoryStore
from tests.engine.engines import until
from tests.engine.harness import assert_same_session
from tests.engine.sessions_harness import (
    ENDLESS,
    KEY,
    House,
    asked,
    create,
    house,
    in_loop,
    in_pieces,
    ingest,
    run,
    text_of,
)

SAMPLED = SamplingParams(temperature=1.0, seed=3, max_tokens=10)
ONE_SLOT = EngineConfig(max_num_sequences=1)


class WatchedStore(MemoryStore):
    """Counts loads, which wait until `may_load`. The calls named in `failing` fail."""

    def __init__(self) -> None:
        super().__init__()
        self.num_loads = 0
        self.failing: set[str] = set()
        self.may_load = threading.Event()
        self.may_load.set()

    def load(self, key: SessionKey, version: int | None = None) -> Any:
        self.num_loads += 1
        assert self.may_load.wait(30)
        if "load" in self.failing:
            raise StoreUnavailable("out for the test")
        return super().load(key, version)

    def commit(self, key: SessionKey, base: Head | None, new: NewGeneration) -> Head:
        if "commit" in self.failing:
            raise StoreFull("full for the test")
        return super().commit(key, base, new)


def test_a_session_goes_on_with_the_same_bits_from_the_device_the_host_and_the_store() -> None:
    """Row 6, through the session layer: three servers, each with its own tier for every turn but the first."""

    async def test() -> None:
        texts: dict[str, list[str]] = {}
        states: dict[str, SequenceState] = {}
        for tier in ("device", "host", "store"):
            config = SessionConfig(max_host_num_bytes=0 if tier == "store" else 2**30)
            async with house(config=config, engine_config=ONE_SLOT) as it:
                texts[tier] = []
                for question in ("one", "two", "three"):
                    texts[tier].append((await run(it.sessions, asked(question, sampling=SAMPLED)))[0])
                    if tier == "host":
                        # The only slot is needed for something else.
                        await run(it.sessions, asked("Hi", session=None))
                assert it.observed.tiers == [tier, tier]
                states[tier] = await it.state()
        assert texts["device"] == texts["host"] == texts["store"]
        for tier in ("host", "store"):
            assert_same_session(states[tier], states["device"], tolerance=0)

    in_loop(test)


def test_a_turn_that_could_not_be_committed_leaves_nothing_on_the_device_and_is_not_gone_on_from() -> None:
    async def test() -> None:
        store = WatchedStore()
        async with house(store) as it, house() as twin:
            await run(it.sessions, asked("one"))
            store.failing = {"commit"}
            with pytest.raises(StoreFull):
                await run(it.sessions, asked("the code is 4 7 1"))
            with pytest.raises(StoreFull):
                await ingest(it.sessions, in_pieces(b"the code is 4 7 1", 9))
            store.failing = set()
            await until(lambda: it.engine.stats().num_resident_states == 0)
            await run(it.sessions, asked("two"))
            assert it.observed.tiers == ["device", "store", "store"]
            for question in ("one", "two"):
                await run(twin.sessions, asked(question))
            assert_same_session(await it.state(), await twin.state(), tolerance=0)

    in_loop(test)


def test_a_session_that_is_deleted_or_leaves_the_host_leaves_the_device_too() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("the code is 4 7 1"))
            assert it.engine.stats().num_resident_states == 1
            await it.sessions.delete(KEY)
            await until(lambda: it.engine.stats().num_resident_states == 0)
        async with house(config=SessionConfig(max_host_num_bytes=0)) as it:
            await run(it.sessions, asked("the code is 4 7 1"))
            await until(lambda: it.engine.stats().num_resident_states == 0)

    in_loop(test)


def test_a_resume_is_counted_once_and_only_when_something_went_on() -> None:
    async def test() -> None:
        store = MemoryStore()
        async with house(store) as it:
            await ingest(it.sessions, in_pieces(text_of(20), 97))
            assert len(it.observed.num_tokens) > 2
            assert it.observed.tiers == []
            await run(it.sessions, asked("one", idempotency_key="k"))
            assert it.observed.tiers == ["device"]
        async with house(store) as it:
            await it.committed(KEY)
            async with it.sessions.turn(asked("one", idempotency_key="k")) as stored:
                assert not isinstance(stored, Turn)
            assert it.observed.tiers == []
            await ingest(it.sessions, in_pieces(text_of(20, seed=7), 97))
            assert it.observed.tiers == ["host"]

    in_loop(test)


def test_readers_that_come_at_once_load_the_session_once_and_one_that_leaves_takes_no_load_along() -> None:
    async def test() -> None:
        store = WatchedStore()
        async with house(store) as it:
            await run(it.sessions, asked("one"))
        async with house(store) as it:
            store.may_load.clear()
            readers = [asyncio.create_task(run(it.sessions, asked("two", read_only=True))) for _ in range(4)]
            await until(lambda: store.num_loads > 0)
            await asyncio.sleep(0.05)
            readers[0].cancel()
            await asyncio.sleep(0.01)
            store.may_load.set()
            await asyncio.gather(*readers, return_exceptions=True)
            assert readers[0].cancelled()
            assert len({reader.result()[0] for reader in readers[1:]}) == 1
            await run(it.sessions, asked("two", read_only=True))
            assert store.num_loads == 1

    in_loop(test)


def test_a_load_that_fails_fails_all_who_wait_for_it_and_nobody_who_comes_later() -> None:
    async def test() -> None:
        store = WatchedStore()
        async with house(store) as it:
            await run(it.sessions, asked("one"))
        async with house(store) as it:
            store.failing = {"load"}
            readers = (run(it.sessions, asked("two", read_only=True)) for _ in range(3))
            failures = await asyncio.gather(*readers, return_exceptions=True)
            assert all(isinstance(failure, StoreUnavailable) for failure in failures)
            assert (store.num_loads, it.observed.failures) == (1, ["store_unavailable"])
            store.failing = set()
            await run(it.sessions, asked("two", read_only=True))

    in_loop(test)


async def everything_of(it: House) -> tuple[Any, ...]:
    """What a reader must leave as it was, apart from the state."""
    _, record = await it.storage.load(KEY)
    assert record is not None
    return await it.sessions.describe(KEY), record.ledger, record.system_digest, await it.storage.load_stored(KEY)


def num_steps(it: House) -> int:
    return sum(it.engine.stats().iteration_tokens.counts)


def test_readers_share_one_copy_and_the_batches_and_change_nothing() -> None:
    async def test() -> None:
        store = WatchedStore()
        questions = [f"what about {number}?" for number in range(8)]
        async with house(store) as it:
            await run(it.sessions, asked("one"))
            one_by_one = [(await run(it.sessions, asked(text, read_only=True)))[0] for text in questions]
            num_alone = num_steps(it)
        async with house(store, engine_config=EngineConfig(max_num_sequences=9)) as it:
            before = await everything_of(it)
            store.num_loads = 0
            _, copy = await it.committed(KEY)
            assert copy is not None
            copied = SequenceState(copy.tensors.clone(), copy.tokens_digest, copy.pending_token_ids)
            at_once = await asyncio.gather(*(run(it.sessions, asked(text, read_only=True)) for text in questions))
            assert [text for text, _ in at_once] == one_by_one
            assert num_steps(it) < num_alone / 2
            assert await it.committed(KEY) == (before[0][0], copy)
            assert_same_session(copy, copied, tolerance=0)
            assert store.num_loads == 1
            assert await everything_of(it) == before
            assert it.observed.tiers == ["host"] * 8

    in_loop(test)


def test_readers_beside_a_writer_see_the_last_commit() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            expected = (await run(it.sessions, asked("what was it?", read_only=True)))[0]
            writer = asyncio.create_task(run(it.sessions, asked("two", sampling=ENDLESS)))
            await until(lambda: it.engine.stats().num_slots_in_use > 0)
            readers = (run(it.sessions, asked("what was it?", read_only=True)) for _ in range(3))
            for text, turn in await asyncio.gather(*readers):
                assert (text, turn.base_version) == (expected, 1)
            assert not writer.done()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    in_loop(test)


def test_a_session_that_is_only_read_from_its_copy_does_not_end(store: Store) -> None:
    async def test() -> None:
        async with house(store) as it:
            await create(it.sessions, {}, ttl_seconds=2)
            await run(it.sessions, asked("one"))
            for _ in range(3):
                await asyncio.sleep(0.75)
                await run(it.sessions, asked("two", read_only=True))
            assert it.observed.tiers[0] == "device"
            assert "store" not in it.observed.tiers

    in_loop(test)


def test_sessions_that_have_read_nothing_take_no_place_on_the_host() -> None:
    async def test() -> None:
        async with house() as it:
            for number in range(3):
                key = SessionKey("default", f"empty{number}")
                await create(it.sessions, {}, key)
                assert (await it.committed(key))[1] is None
            assert it.sessions.num_host_copies == 0

    in_loop(test)


def num_resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_two_thousand_idle_sessions_cost_the_budget_and_no_more(tmp_path: Path) -> None:
    num_before, num_after, num_at_once = 400, 2000, 8
    config = SessionConfig(max_host_num_bytes=2_000_000)
    # One token, so that the time goes into commits.
    short = SamplingParams(temperature=0, max_tokens=1)

    async def test() -> None:
        engine_config = EngineConfig(max_num_sequences=num_at_once)
        async with house(LocalStore(tmp_path / "sessions"), config, engine_config) as it:

            async def use(numbers: range) -> None:
                for number in numbers:
                    key = SessionKey("default", f"s{number}")
                    await run(it.sessions, asked("Hi", session=key, sampling=short))
                    assert it.sessions.num_host_copies <= max_num_copies

            async def use_all(first: int, last: int) -> tuple[int, int]:
                await asyncio.gather(*(use(range(first + lane, last, num_at_once)) for lane in range(num_at_once)))
                gc.collect()
                return num_resident_bytes(), sys.getallocatedblocks()

            await run(it.sessions, asked("Hi", sampling=short))
            head, _ = await it.sessions.describe(KEY)
            # All these sessions are of one size.
            max_num_copies = config.max_host_num_bytes // (head.num_bytes + head.committed.extra_num_bytes)
            num_bytes, num_blocks = await use_all(0, num_before)
            more_bytes, more_blocks = await use_all(num_before, num_after)
            assert it.sessions.num_host_copies == max_num_copies < num_before / 4
            # One object of Python's left of each session would be too many.
            assert more_blocks - num_blocks < (num_after - num_before) / 2
            # The store's own caches still fill.
            assert more_bytes - num_bytes < head.num_bytes * (num_after - num_before) / 4

    asyncio.run(test())

"""A turn is a transaction, whatever goes wrong: clients, stores, other writers, the end of the process."""

import asyncio
import threading
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from engine.errors import (
    CommitConflict,
    Draining,
    SessionBusy,
    SessionNotFound,
    StoreUnavailable,
)
from engine.sessions import SessionConfig, Turn
from engine.stores.base import Buffer, Head, NewGeneration, SessionKey, new_generation_id
from engine.stores.memory import MemoryStore
from tests.engine.sessions_harness import (
    ENDLESS,
    GREEDY,
    KEY,
    asked,
    house,
    in_loop,
    in_pieces,
    ingest,
    replayed,
    run,
    text_of,
)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_turn_that_is_left_takes_nothing_along(phase: str) -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            before = await it.state()

            async def leave() -> None:
                async with it.sessions.turn(asked("two", sampling=ENDLESS)) as turn:
                    assert isinstance(turn, Turn)
                    async with aclosing(turn.outputs()) as outputs:
                        async for _, output in outputs:
                            if phase == "decode" and output.token_ids:
                                raise ConnectionError
                            if phase == "prefill":
                                raise ConnectionError

            with pytest.raises(ConnectionError):
                await leave()
            assert await it.head_version() == 1
            while it.engine.stats().num_slots_in_use:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await run(it.sessions, asked("two"))
            assert (await it.state()).position > before.position
            assert await it.head_version() == 2

    in_loop(test)


def test_a_cancelled_turn_gives_the_session_back_at_once() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            running = asyncio.create_task(run(it.sessions, asked("two", sampling=ENDLESS)))
            await asyncio.sleep(0.1)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            async with asyncio.timeout(0.9):
                await run(it.sessions, asked("three"))
            assert await it.head_version() == 2

    in_loop(test)


class SlowStore(MemoryStore):
    """Commits take a while; `began` says that one has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.began = asyncio.Event()

    def commit(self, key: SessionKey, base: Head | None, new: NewGeneration) -> Head:
        self.loop.call_soon_threadsafe(self.began.set)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.2), self.loop).result()
        return super().commit(key, base, new)


def test_a_commit_that_has_begun_is_not_taken_back_by_a_disconnect() -> None:
    async def test() -> None:
        store = SlowStore()
        async with house(store) as it:
            running = asyncio.create_task(run(it.sessions, asked("one")))
            await store.began.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert await it.head_version() == 1
            repeated = await replayed(it.sessions, asked("one", is_retry=True))
            assert repeated.version == 1

    in_loop(test)


class FailingStore(MemoryStore):
    """The calls named in `failing` raise StoreUnavailable."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: set[str] = set()

    def _fail(self, name: str) -> None:
        if name in self.failing:
            raise StoreUnavailable("out for the test")

    def read_head(self, key: SessionKey) -> Head | None:
        self._fail("read_head")
        return super().read_head(key)

    def load(self, key: SessionKey, version: int | None = None) -> Any:
        self._fail("load")
        return super().load(key, version)

    def commit(self, key: SessionKey, base: Head | None, new: NewGeneration) -> Head:
        self._fail("commit")
        head = super().commit(key, base, new)
        self._fail("reply")
        return head

    def acquire_lease(self, key: SessionKey, owner: str, seconds: float) -> bool:
        self._fail("lease")
        return super().acquire_lease(key, owner, seconds)


@pytest.mark.parametrize("call", ["lease", "read_head", "load", "commit"])
def test_a_store_that_fails_fails_the_turn_and_leaves_the_session(call: str) -> None:
    async def test() -> None:
        store = FailingStore()
        async with house(store) as it:
            await run(it.sessions, asked("one"))
        async with house(store) as it:
            store.failing = {call}
            with pytest.raises(StoreUnavailable):
                await run(it.sessions, asked("two"))
            store.failing = set()
            assert await it.head_version() == 1
            await run(it.sessions, asked("two"))
            assert await it.head_version() == 2

    in_loop(test)


def test_a_lost_reply_of_a_commit_is_recognised_as_mine() -> None:
    async def test() -> None:
        store = FailingStore()
        async with house(store) as it:
            await run(it.sessions, asked("one"))
            store.failing = {"reply"}
            asyncio.get_running_loop().call_later(0.1, store.failing.clear)
            await run(it.sessions, asked("two"))
            assert await it.head_version() == 2

    in_loop(test)


class OvertakingStore(MemoryStore):
    """Version 2 is applied, its reply is lost, and before it is asked for again another writer makes a version 3 of
    what was version 1."""

    def commit(self, key: SessionKey, base: Head | None, new: NewGeneration) -> Head:
        head = super().commit(key, base, new)
        if head == self.read_head(key) and head.version == 2:
            first, parts = self.load(key, 1)[0].find(1), self.load(key, 1)[1]
            assert first is not None
            theirs = replace(
                new,
                generation=new_generation_id(),
                parts=parts,
                digest=first.digest,
                position=first.position,
                extra=self.load_extra(key, 1),
            )
            super().commit(key, head, theirs)
            raise StoreUnavailable("out for the test")
        return head


def test_a_commit_that_another_followed_before_its_lost_reply_is_not_taken_for_what_followed() -> None:
    async def test() -> None:
        store = OvertakingStore()
        async with house(store) as it:
            await run(it.sessions, asked("one"))
            first = await it.state()
            await run(it.sessions, asked("two"))
            assert await it.head_version() == 3
            _, turn = await run(it.sessions, asked("three"))
            assert turn.usage.num_cached_tokens == first.position
            assert await it.head_version() == 4

    in_loop(test)


def test_a_document_does_not_go_on_over_a_commit_that_followed_its_own() -> None:
    async def test() -> None:
        store = OvertakingStore()
        async with house(store) as it:
            await run(it.sessions, asked("one"))
            first = await it.state()
            with pytest.raises(CommitConflict):
                await ingest(it.sessions, in_pieces(text_of(60), 100))
            assert await it.head_version() == 3
            assert (await it.state()).position == first.position

    in_loop(test)


def test_another_writer_that_commits_first_wins_and_this_turn_is_not_applied() -> None:
    async def test() -> None:
        store = MemoryStore()
        async with house(store) as mine, house(store) as other:
            await run(mine.sessions, asked("one"))

            async def overtaken() -> None:
                async with mine.sessions.turn(asked("two")) as turn:
                    assert isinstance(turn, Turn)
                    _ = [output async for output in turn.outputs()]
                    head, record = await other.storage.load(KEY)
                    assert record is not None
                    stored = await other.storage.load_stored(KEY)
                    await other.storage.commit(KEY, head, record, stored)
                    await turn.commit({})

            with pytest.raises(CommitConflict):
                await overtaken()
            assert await mine.head_version() == 2
            assert (await mine.state()).position == (await other.state()).position

    in_loop(test)


def test_one_writes_one_waits_and_the_third_is_told_to_come_back() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            async with it.sessions.turn(asked("two")):
                waiting = asyncio.create_task(run(it.sessions, asked("three")))
                await asyncio.sleep(0.05)
                with pytest.raises(SessionBusy) as refused:
                    await run(it.sessions, asked("four"))
                assert refused.value.retry_after == 1
                assert not waiting.done()
            await waiting
            assert await it.head_version() == 2
            await run(it.sessions, asked("four"))

    in_loop(test)


def test_the_lease_of_a_killed_server_is_taken_over_when_it_runs_out() -> None:
    async def test() -> None:
        store = MemoryStore()
        async with house(store) as it:
            assert store.acquire_lease(KEY, "a server that was killed", 1.0)
            await run(it.sessions, asked("one"))
            assert store.acquire_lease(KEY, "a server that goes on writing", 60.0)
            with pytest.raises(SessionBusy):
                await run(it.sessions, asked("two"))

    in_loop(test)


def test_a_long_turn_renews_its_lease() -> None:
    async def test() -> None:
        store = MemoryStore()
        async with house(store, SessionConfig(lease_seconds=0.9)) as it, it.sessions.turn(asked("one")):
            for _ in range(20):
                await asyncio.sleep(0.1)
                assert not store.acquire_lease(KEY, "another", 1.0)
        assert store.acquire_lease(KEY, "another", 1.0)

    in_loop(test)


def test_draining_lets_a_turn_finish_and_commit_and_takes_no_other() -> None:
    async def test() -> None:
        async with house() as it:
            running = asyncio.create_task(run(it.sessions, asked("one", sampling=replace(GREEDY, max_tokens=30))))
            await asyncio.sleep(0.05)
            draining = asyncio.create_task(it.sessions.drain(30.0))
            await asyncio.sleep(0)
            with pytest.raises(Draining):
                await run(it.sessions, asked("two"))
            await asyncio.gather(running, draining)
            assert await it.head_version() == 1

    in_loop(test)


def test_a_drain_that_runs_out_of_time_commits_what_was_said() -> None:
    async def test() -> None:
        async with house() as it:
            running = asyncio.create_task(run(it.sessions, asked("one", sampling=ENDLESS)))
            await asyncio.sleep(0.2)
            await it.sessions.drain(0.1)
            text, _ = await running
            assert await it.head_version() == 1
            assert text

    in_loop(test)


def test_who_loads_a_session_that_is_being_deleted_keeps_no_copy_of_it() -> None:
    class SlowStore(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self.may_return = threading.Event()
            self.may_return.set()

        def load(self, key: SessionKey, version: int | None = None) -> tuple[Head, list[Buffer]]:
            loaded = super().load(key, version)
            self.may_return.wait()
            return loaded

    store = SlowStore()

    async def test() -> None:
        async with house(store) as there, house(store) as here:
            await run(there.sessions, asked("one"))
            store.may_return.clear()
            reader = asyncio.create_task(run(here.sessions, asked("two", read_only=True)))
            await asyncio.sleep(0.05)
            await here.sessions.delete(KEY)
            store.may_return.set()
            # It had read the session before, whole.
            text, _ = await reader
            assert text
            assert here.sessions.num_host_copies == 0
            with pytest.raises(SessionNotFound):
                await run(here.sessions, asked("two", read_only=True))

    in_loop(test)


class WatchedAnswer(dict[str, Any]):
    """Knows the threads in which it was written as JSON."""

    def __init__(self) -> None:
        super().__init__(text="a")
        self.threads: set[int] = set()

    def items(self) -> Any:
        self.threads.add(threading.get_ident())
        return super().items()


def test_an_answer_which_may_be_long_is_written_beside_the_event_loop() -> None:
    async def test() -> None:
        async with house() as it:
            answer = WatchedAnswer()
            async with it.sessions.turn(asked("one")) as turn:
                assert isinstance(turn, Turn)
                async with aclosing(turn.outputs()) as outputs:
                    async for _ in outputs:
                        pass
                await turn.commit(answer)
            assert answer.threads
            assert threading.get_ident() not in answer.threads

    in_loop(test)

"""A tenant's quotas, on every store: refused early, refused whole, and freed by what goes away."""

import asyncio
import resource
import threading
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import pytest

from engine.engine import Engine
from engine.errors import SessionExists, StoreFull, StoreUnavailable, VersionNotFound
from engine.sessions import History, RequestIdentity, TenantQuota
from engine.sessions.quotas import RECOUNT_SECONDS, Quotas
from engine.sessions.storage import Beginning
from engine.stores.base import Head, SessionKey, Store, TenantUsage
from engine.stores.head import stored_num_bytes
from engine.stores.memory import MemoryStore
from tests.engine import store_cases
from tests.engine.sessions_harness import KEY, House, asked, create, house, in_loop, in_pieces, ingest, run, text_of
from tests.engine.store_cases import NUM_KEPT, commit_number, generation_of

NOBODY = RequestIdentity()
FOREIGN = SessionKey("another", "s")


def key(number: int) -> SessionKey:
    return SessionKey(KEY.tenant, f"s{number}")


def num_fed(engine: Engine) -> int:
    return engine.stats().prompt_tokens_total


async def fork(it: House, source: SessionKey, target: SessionKey) -> Head:
    with it.sessions.versions() as versions:
        return await versions.fork(source, None, target, None, None, NOBODY)


async def export_and_import(it: House, source: SessionKey, target: SessionKey) -> Head:
    with it.sessions.versions() as versions:
        _, _, parts = await versions.export(source, None)
        return await versions.import_snapshot(target, parts, None, NOBODY)


def stored(store: Store, tenant: str = KEY.tenant) -> TenantUsage:
    """What is there, by the heads; fails when the store counts otherwise."""
    heads = [head for _, head in store.list_sessions(tenant, 1000)]
    found = TenantUsage(len(heads), sum(stored_num_bytes(head) for head in heads))
    assert store.usage(tenant) == store.recount(tenant) == found
    return found


async def take_turns(it: House, num_turns: int) -> None:
    for number in range(num_turns):
        await run(it.sessions, asked(f"turn {number}", history=History.NEW))


async def num_bytes_after(num_turns: int) -> int:
    async with house(MemoryStore(NUM_KEPT)) as it:
        await take_turns(it, num_turns)
        return stored_num_bytes(await it.storage.read_head(KEY))


def test_every_way_to_make_one_session_too_many_is_refused_before_the_model_runs(store: Store) -> None:
    async def test() -> None:
        async with house(store, quota=TenantQuota(max_num_sessions=2)) as it:
            await run(it.sessions, asked("one", session=key(0)))
            await create(it.sessions, {}, key(1))
            before, fed = stored(store), num_fed(it.engine)
            ways: list[Awaitable[object]] = [
                create(it.sessions, {}, key(2)),
                run(it.sessions, asked("one", session=key(2))),
                ingest(it.sessions, in_pieces(text_of(40), 100), session=key(2)),
                fork(it, key(0), key(2)),
                export_and_import(it, key(0), key(2)),
            ]
            for way in ways:
                with pytest.raises(StoreFull, match="the quota is 2 sessions, and 2 are stored"):
                    await way
            assert num_fed(it.engine) == fed
            assert stored(store) == before
            assert before.num_sessions == 2
            # What exists goes on, and so does whoever stores nothing.
            await run(it.sessions, asked("one", session=key(1)))
            await run(it.sessions, asked("two", session=key(0), read_only=True))
            await run(it.sessions, asked("three", session=None))
            await run(it.sessions, asked("one", session=FOREIGN))
            await it.sessions.delete(key(1))
            await run(it.sessions, asked("one", session=key(2)))
            assert stored(store).num_sessions == 2

    in_loop(test)


def test_a_session_may_go_on_at_its_size_and_nothing_may_come_beside_it(store: Store) -> None:
    async def test() -> None:
        # Room for the session's small growth, and far from room for another generation.
        quota = TenantQuota(max_num_bytes=await num_bytes_after(num_turns=12) * 11 // 10)
        async with house(store, quota=quota) as it:
            await take_turns(it, 14)
            before = stored(store)
            for way in (
                run(it.sessions, asked("one", session=key(1))),
                ingest(it.sessions, in_pieces(text_of(40), 100), session=key(1)),
                fork(it, KEY, key(1)),
                export_and_import(it, KEY, key(1)),
            ):
                with pytest.raises(
                    StoreFull, match=f"the quota is {quota.max_num_bytes} bytes, and {before.num_bytes}"
                ):
                    await way
            assert stored(store) == before

    in_loop(test)


def test_a_named_version_counts_until_it_loses_its_name(store: Store) -> None:
    async def test() -> None:
        quota = TenantQuota(max_num_bytes=await num_bytes_after(num_turns=8))
        async with house(store, quota=quota) as it:
            await take_turns(it, 4)
            with it.sessions.versions() as versions:
                await versions.name(KEY, 2, "second")
            before, fed = stored(store), num_fed(it.engine)
            with pytest.raises(StoreFull):
                await run(it.sessions, asked("one too many", history=History.NEW))
            # There were bytes left, and fewer than a snapshot has.
            assert num_fed(it.engine) == fed
            assert stored(store) == before
            assert await it.head_version() == 4
            with it.sessions.versions() as versions:
                await versions.unname(KEY, "second")
            assert stored(store) == before
            await run(it.sessions, asked("instead of the second", history=History.NEW))
            with pytest.raises(VersionNotFound), it.sessions.versions() as versions:
                await versions.find(KEY, 2)
            assert stored(store).num_bytes <= (quota.max_num_bytes or 0)

    in_loop(test)


def test_a_creation_whose_answer_was_lost_is_answered_again_and_not_refused(store: Store) -> None:
    async def test() -> None:
        identity = RequestIdentity("digest", "the key")
        async with house(store, quota=TenantQuota(max_num_sessions=1)) as it:
            with it.sessions.versions() as versions:
                head = await versions.create(KEY, {}, None, identity)
                assert await versions.create(KEY, {}, None, identity) == head
                with pytest.raises(SessionExists):
                    await versions.create(KEY, {}, None, NOBODY)
                with pytest.raises(StoreFull):
                    await versions.create(key(1), {}, None, identity)

    in_loop(test)


def test_a_session_that_has_ended_makes_room(store: Store) -> None:
    async def test() -> None:
        async with house(store, quota=TenantQuota(max_num_sessions=2)) as it:
            await create(it.sessions, {}, key(0))
            await it.storage.create(key(1), Beginning(ttl_seconds=1))
            with pytest.raises(StoreFull):
                await create(it.sessions, {}, key(2))
            await asyncio.sleep(1 + RECOUNT_SECONDS)
            await create(it.sessions, {}, key(2))
            assert stored(store).num_sessions == 2

    in_loop(test)


def test_creations_at_once_fill_the_quota_and_never_overshoot(store: Store) -> None:
    async def test() -> None:
        async with house(store, quota=TenantQuota(max_num_sessions=5)) as it:
            for first in (0, 20):
                tries = (create(it.sessions, {}, key(first + number)) for number in range(20))
                outcomes = await asyncio.gather(*tries, return_exceptions=True)
                assert all(isinstance(outcome, Head | StoreFull) for outcome in outcomes)
                assert sum(isinstance(outcome, Head) for outcome in outcomes) == (5 if first == 0 else 0)
                assert stored(store).num_sessions == 5

    in_loop(test)


def test_a_flood_of_creations_leaves_memory_and_store_flat(store: Store) -> None:
    async def flood(it: House, numbers: range) -> None:
        for number in numbers:
            with pytest.raises(StoreFull):
                await create(it.sessions, {"text": "x" * 500}, key(number))

    async def test() -> None:
        async with house(store, quota=TenantQuota(max_num_sessions=3)) as it:
            for number in range(3):
                await create(it.sessions, {}, key(number))
            before = stored(store)
            await flood(it, range(100, 300))
            num_bytes = resident_num_bytes()
            await flood(it, range(300, 2300))
            assert resident_num_bytes() - num_bytes < 4 * 2**20
            assert stored(store) == before

    in_loop(test)


def resident_num_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_what_a_commit_would_give_back_is_not_given_away_before_it_has() -> None:
    store = MemoryStore(num_kept=4)
    head = None
    for number in range(5):
        head = commit_number(store, number, head)
    num_bytes = store.usage(store_cases.KEY.tenant).num_bytes
    quotas = Quotas(TenantQuota(max_num_bytes=num_bytes), 0)
    # A server that keeps fewer versions: the next commit drops four.
    store.num_kept = 0
    other = SessionKey(store_cases.KEY.tenant, "other")

    def begin_another() -> None:
        with quotas.admitted(store, other, None, generation_of(1)):
            store.create(other, generation_of(1))

    with ThreadPoolExecutor(1) as threads:
        with suppress(StoreUnavailable), quotas.admitted(store, store_cases.KEY, head, generation_of(5)):
            beginning = threads.submit(begin_another)
            wait([beginning], timeout=0.3)
            raise StoreUnavailable("this commit fails, and gives nothing back")
        with pytest.raises(StoreFull):
            beginning.result(timeout=10)
    assert store.usage(other.tenant).num_bytes == num_bytes


class SlowlyRecountedStore(MemoryStore):
    """The recount of one tenant ends when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.slow_tenant, self.goes_on = "", threading.Event()

    def recount(self, tenant: str) -> TenantUsage:
        assert tenant != self.slow_tenant or self.goes_on.wait(10)
        return super().recount(tenant)


def test_a_tenant_that_is_being_recounted_holds_up_no_other() -> None:
    store = SlowlyRecountedStore()
    store.slow_tenant = "slow"
    quotas = Quotas(TenantQuota(max_num_sessions=1), 0)

    def begin(tenant: str) -> None:
        session = SessionKey(tenant, "s")
        with quotas.admitted(store, session, None, generation_of(1)):
            store.create(session, generation_of(1))

    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(begin, "slow")
        try:
            threads.submit(begin, "quick").result(timeout=5)
            assert not slow.done()
        finally:
            store.goes_on.set()
        slow.result(timeout=5)
    assert (store.usage("quick").num_sessions, store.usage("slow").num_sessions) == (1, 1)

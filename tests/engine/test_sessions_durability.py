"""What a client is told when commits wait for replicas, when a failover has lost some, and when Redis hangs.

The stores are real Redis servers.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from itertools import pairwise
from statistics import median

import pytest

from engine.errors import StoreUnavailable, VersionConflict
from engine.sessions import SessionManager, Turn
from engine.sessions.stored_turns import RequestIdentity
from engine.stores import open_store
from engine.stores.base import SessionKey, Store
from engine.stores.redis_connections import CONTROL_SECONDS
from tests.engine.harness import SMALL
from tests.engine.replay_harness import LOGGING, replay
from tests.engine.sessions_harness import ENDLESS, KEY, asked, house, in_loop, in_pieces, ingest, replayed, run
from tests.redis_server import RedisServer, redis_is_installed
from tests.redis_topologies import ask, info, wait_for_acknowledgement, wait_for_replica, wait_until

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(not redis_is_installed(), reason="redis-server is not installed"),
]
Own = Callable[..., RedisServer]


def replica_of(own: Own, server: RedisServer, *extra_args: str) -> RedisServer:
    replica = own("--replicaof", "127.0.0.1", str(server.port), *extra_args)
    wait_for_replica(server, replica)
    wait_for_acknowledgement(server)
    return replica


def wake(replica: RedisServer, server: RedisServer) -> None:
    replica.resume()
    wait_for_acknowledgement(server)


def waiting_store(server: RedisServer) -> Store:
    store = open_store(f"{server.url}?replicas=1&wait_ms=200")
    store.check()
    return store


def test_a_turn_that_too_few_replicas_have_is_answered_by_its_repetition_once_they_have_it(own: Own) -> None:
    """Learned once: the repetition is not run, and is not answered either before it is as durable as it says."""

    async def test() -> None:
        server = own()
        replica = replica_of(own, server)
        replica.pause()
        async with house(waiting_store(server)) as it:
            request = asked("one", idempotency_key="k")
            with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
                await run(it.sessions, request)
            assert await it.head_version() == 1
            position = (await it.state()).position
            for repetition in (request, asked("one", is_retry=True)):
                with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
                    await replayed(it.sessions, repetition)
            wake(replica, server)
            for repetition in (request, asked("one", is_retry=True)):
                assert (await replayed(it.sessions, repetition)).version == 1
            assert (await it.state()).position == position
            _, turn = await run(it.sessions, asked("two"))
            committed = turn.session()
            assert committed is not None
            assert (committed.version, committed.durability) == (2, "replicated:1")

    in_loop(test)


def test_a_document_that_too_few_replicas_have_is_not_acknowledged_by_its_repetition_either(own: Own) -> None:
    async def test() -> None:
        server = own()
        replica = replica_of(own, server)
        replica.pause()
        async with house(waiting_store(server)) as it:
            for _ in range(2):
                with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
                    await ingest(it.sessions, in_pieces(b"a short document", 5), document_id="d")
                assert await it.head_version() == 1
            wake(replica, server)
            progress, result = await ingest(it.sessions, in_pieces(b"a short document", 5), document_id="d")
            assert (progress, result.session.version, result.session.durability) == ([], 1, "replicated:1")

    in_loop(test)


def test_a_session_that_too_few_replicas_know_is_not_begun_for_the_client_until_they_do(own: Own) -> None:
    async def test() -> None:
        server = own()
        replica = replica_of(own, server)
        replica.pause()
        async with house(waiting_store(server)) as it:
            identity = RequestIdentity("create", "k")
            with it.sessions.versions() as versions:
                for _ in range(2):
                    with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
                        await versions.create(KEY, {"a": "b"}, None, identity)
                wake(replica, server)
                head = await versions.create(KEY, {"a": "b"}, None, identity)
            assert (head.version, head.metadata) == (0, {"a": "b"})

    in_loop(test)


def test_a_rewind_that_too_few_replicas_have_is_made_once_and_acknowledged_when_they_have_it(own: Own) -> None:
    async def test() -> None:
        server = own()
        replica = replica_of(own, server)
        async with house(waiting_store(server)) as it:
            for text in ("one", "two"):
                await run(it.sessions, asked(text))
            replica.pause()
            identity = RequestIdentity("rewind", "k")
            for _ in range(2):
                with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
                    await it.sessions.rewind(KEY, 1, None, identity)
            wake(replica, server)
            session = await it.sessions.rewind(KEY, 1, None, identity)
            assert (session.version, session.rewound_to, session.durability) == (3, 1, "replicated:1")
            assert await it.head_version() == 3

    in_loop(test)


def test_a_replay_that_too_few_replicas_have_is_made_once_and_acknowledged_when_they_have_it(own: Own) -> None:
    async def test() -> None:
        server = own()
        replica = replica_of(own, server)
        async with house(waiting_store(server), LOGGING) as it:
            await run(it.sessions, asked("one"))
            replica.pause()
            identity = RequestIdentity("replay", "k")
            for _ in range(2):
                with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
                    await replay(it, identity=identity)
            wake(replica, server)
            _, result = await replay(it, identity=identity)
            assert (result.session.version, result.session.durability) == (2, "replicated:1")
            assert await it.head_version() == 2

    in_loop(test)


def test_a_failover_that_lost_an_acknowledged_version_is_told_and_never_silently_continued(own: Own) -> None:
    """The replica was cut off when the second turn was committed, and then made the master."""

    async def test() -> None:
        server = own()
        replica = replica_of(own, server, "--appendonly", "yes", "--appendfsync", "always")
        async with house(open_store(server.url)) as it:
            await run(it.sessions, asked("one"))
            wait_for_acknowledgement(server)
            wait_until(lambda: info(replica, "persistence")["aof_rewrite_in_progress"] == 0, "the replica's file")
            before = await it.state()
            ask(replica, "REPLICAOF", "NO", "ONE")
            await run(it.sessions, asked("two"))
            assert await it.head_version() == 2
            server.kill()
            replica.kill()
            replica.port = server.port
            replica.start()
            ask(replica, "REPLICAOF", "NO", "ONE")

            with pytest.raises(VersionConflict, match="lost version 2") as told:
                await run(it.sessions, asked("three"))
            assert told.value.current == 1
            with pytest.raises(VersionConflict, match="at version 1"):
                await run(it.sessions, asked("three", if_match=2))
            _, turn = await run(it.sessions, asked("three", if_match=1))
            assert turn.base_version == 1
            assert (await it.state()).position > before.position
            assert await it.head_version() == 2

    in_loop(test)


async def gaps(sessions: SessionManager, seconds: float) -> list[float]:
    """Seconds between the tokens of a turn that needs no store."""
    times: list[float] = []
    async with sessions.turn(asked("tell", session=None, sampling=ENDLESS)) as turn:
        assert isinstance(turn, Turn)
        async with aclosing(turn.outputs()) as outputs:
            async for _ in outputs:
                times.append(time.monotonic())
                if times[-1] - times[0] > seconds:
                    break
    return [after - before for before, after in pairwise(times)]


def test_a_redis_that_hangs_fails_its_own_turns_and_moves_no_other_ones_tokens(own: Own) -> None:
    async def test() -> None:
        server = own()
        async with house(open_store(server.url)) as it:
            await run(it.sessions, asked("one"))
            before = await gaps(it.sessions, 1.0)
            server.pause()
            # All that there are places for beside the one whose tokens are timed.
            num_turns = SMALL.max_num_sequences + SMALL.max_num_waiting - 1
            turns = [run(it.sessions, asked("two", session=SessionKey("default", f"s{n}"))) for n in range(num_turns)]
            hanging = asyncio.gather(*turns, return_exceptions=True)
            during = await gaps(it.sessions, 2.0)
            outcomes = await hanging
            server.resume()
            assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
            after = await gaps(it.sessions, 1.0)
            assert len(during) > 50
            assert max(during) < CONTROL_SECONDS / 2
            assert median(during) < 2 * max(median(before), median(after))
            assert await it.head_version() == 1
            await run(it.sessions, asked("two"))

    in_loop(test)

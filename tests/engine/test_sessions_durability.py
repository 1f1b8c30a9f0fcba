"""What a client is told when commits wait for replicas.

The stores are real Redis servers.
"""

from collections.abc import Callable

import pytest
from engine.errors import StoreUnavailable
from engine.sessions.stored_turns import RequestIdentity
from engine.stores import open_store
from engine.stores.base import Store
from tests.engine.sessions_harness import KEY, asked, house, in_loop, in_pieces, ingest, replayed, run
from tests.redis_server import RedisServer, redis_is_installed
from tests.redis_topologies import wait_for_acknowledgement, wait_for_replica

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

"""Sessions that begin from others: forked, or carried elsewhere as bytes."""

from dataclasses import replace

import pytest

from atlas_model.state import State
from engine.errors import (
    IdempotencyMismatch,
    InvalidState,
    SessionExists,
    VersionNotFound,
)
from engine.sessions import History, RequestIdentity
from engine.sessions.storage import Beginning
from engine.snapshots.snapshot import SessionRecord
from engine.stores.base import SessionKey
from tests.engine.harness import tiny
from tests.engine.sessions_harness import (
    KEY,
    asked,
    create,
    house,
    in_loop,
    in_pieces,
    ingest,
    run,
    text_of,
)
from tests.engine.versions_harness import NOBODY, OTHER, assert_same_bits, exported, fork, imported, kept_versions

BAD = SessionKey(KEY.tenant, "bad")


def test_a_fork_shares_nothing_with_what_it_came_from() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one", idempotency_key="k"))
            before = await it.state()
            head = await fork(it, metadata={"of": "s"})
            assert (head.version, head.position, head.metadata) == (0, before.position, {"of": "s"})
            await run(it.sessions, asked("two", session=OTHER))
            assert_same_bits(await it.state(), before)
            await it.sessions.delete(KEY)
            # The key belongs to the other session's turn.
            await run(it.sessions, asked("one", session=OTHER, idempotency_key="k"))
            assert await kept_versions(it, OTHER) == [2, 1, 0]

    in_loop(test)


def test_a_fork_from_an_older_version_continues_that_one() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            before = await it.state()
            await run(it.sessions, asked("two"))
            await fork(it, 1)
            assert_same_bits(await it.state(OTHER), before)

    in_loop(test)


def test_a_fork_has_read_the_documents_of_what_it_came_from() -> None:
    async def test() -> None:
        async with house() as it:
            await ingest(it.sessions, in_pieces(text_of(9), 50), document_id="book")
            await fork(it)
            before = await it.state(OTHER)
            _, result = await ingest(it.sessions, in_pieces(text_of(9), 99), document_id="book", session=OTHER)
            assert (result.session.session_id, result.session.version) == ("other", 0)
            assert_same_bits(await it.state(OTHER), before)

    in_loop(test)


def test_a_session_is_begun_once_and_the_retry_is_told_so() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            by_library = RequestIdentity("fork it", is_retry=True)
            heads = [await fork(it, identity=identity) for identity in (by_library, by_library)]
            assert heads[0] == heads[1]
            for identity in (NOBODY, RequestIdentity("fork it"), RequestIdentity("another", is_retry=True)):
                with pytest.raises(SessionExists):
                    await fork(it, identity=identity)
            await run(it.sessions, asked("two", session=OTHER))
            with pytest.raises(SessionExists):
                await fork(it, identity=by_library)

    in_loop(test)


def test_a_repeated_fork_is_answered_when_what_it_came_from_is_gone() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            by_key = RequestIdentity("fork it", "key")
            head = await fork(it, 1, by_key)
            await it.sessions.delete(KEY)
            assert await fork(it, 1, by_key) == head
            with pytest.raises(IdempotencyMismatch):
                await fork(it, 1, RequestIdentity("another", "key"))

    in_loop(test)


def test_what_is_exported_here_and_imported_there_is_the_same_session() -> None:
    async def test() -> None:
        async with house() as here, house() as there:
            await run(here.sessions, asked("one", idempotency_key="k"))
            await run(here.sessions, asked("two"))
            for version in (None, 1):
                key = SessionKey(KEY.tenant, f"of-{version}")
                head = await imported(there, [await exported(here, version)], key)
                _, record = await here.storage.load(KEY, version)
                assert record is not None
                assert head.version == 0
                assert_same_bits(await there.state(key), record.state)
            same = SessionKey(KEY.tenant, "of-None")
            answer, _ = await run(there.sessions, asked("one", "", "three", history=History.NEW, session=same))
            assert answer == (await run(here.sessions, asked("one", "", "three", history=History.NEW)))[0]
            # Whoever gets the book does not get the conversation's answers.
            assert not (await there.storage.load_stored(SessionKey(KEY.tenant, "of-1"))).find_turn(
                0, asked("one", idempotency_key="k").identity
            )

    in_loop(test)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_numbers_that_no_session_may_have_are_not_imported(value: float) -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            state = await it.state()
            tensors = {name: tensor.clone() for name, tensor in state.tensors.named_tensors().items()}
            name = next(name for name in tensors if "memory" in name)
            tensors[name].view(-1)[3] = value
            bad = replace(state, tensors=State.from_named_tensors(tiny().model.config, tensors))
            await it.storage.create(BAD, Beginning(record=SessionRecord(state=bad)))
            with it.sessions.versions() as versions:
                _, _, parts = await versions.export(BAD, None)
            with pytest.raises(InvalidState, match=name):
                await imported(it, parts)
            assert await it.storage.read_head(OTHER) is None

    in_loop(test)


@pytest.mark.parametrize(
    "metadata", [{str(i): "" for i in range(17)}, {"": "text"}, {"k" * 65: "text"}, {"key": "v" * 513}]
)
def test_more_metadata_than_a_client_may_give_is_not_imported_either(metadata: dict[str, str]) -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            await it.storage.create(BAD, Beginning(metadata, record=SessionRecord(state=await it.state())))
            with it.sessions.versions() as versions:
                _, _, parts = await versions.export(BAD, None)
            with pytest.raises(InvalidState, match="metadata"):
                await imported(it, parts)
            assert await it.storage.read_head(OTHER) is None

    in_loop(test)


def test_bytes_that_are_no_session_are_not_imported() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            raw = await exported(it)
            flipped = bytearray(raw)
            flipped[-100] ^= 1
            for bad in (b"", b"ATLS", raw[:-1], raw + b"x", bytes(flipped)):
                with pytest.raises(InvalidState):
                    await imported(it, [bad])
            with pytest.raises(SessionExists):
                await imported(it, [raw], KEY)
            assert await it.storage.read_head(OTHER) is None

    in_loop(test)


def test_a_session_that_has_read_nothing_can_be_forked_and_not_exported() -> None:
    async def test() -> None:
        async with house() as it:
            await create(it.sessions, {})
            await fork(it)
            with pytest.raises(VersionNotFound, match="read nothing"):
                await exported(it)

    in_loop(test)

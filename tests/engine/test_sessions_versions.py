"""Versions of a session: kept, named, gone back to, forked, carried elsewhere."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from atlas_model.state import State
from engine.errors import (
    CommitConflict,
    IdempotencyMismatch,
    IngestOpen,
    InvalidState,
    SessionDiverged,
    SessionExists,
    SessionNotFound,
    StateLost,
    VersionConflict,
    VersionNotFound,
)
from engine.sequence import SequenceState
from engine.sessions import History, RequestIdentity
from engine.sessions.storage import Beginning
from engine.snapshot import SessionRecord
from engine.stores.base import Buffer, Head, NewGeneration, SessionKey, new_generation_id
from engine.stores.memory import MemoryStore
from tests.engine.harness import tiny
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
    replayed,
    run,
    text_of,
)

OTHER = SessionKey(KEY.tenant, "other")
BAD = SessionKey(KEY.tenant, "bad")
NOBODY = RequestIdentity()


async def fork(it: House, version: int | str | None = None, identity: RequestIdentity = NOBODY, **fields: Any) -> Head:
    wanted = {"source": KEY, "key": OTHER, "metadata": None, "ttl_seconds": None, **fields}
    with it.sessions.versions() as versions:
        return await versions.fork(version=version, identity=identity, **wanted)


async def rewind(it: House, version: int | str, identity: RequestIdentity = NOBODY, if_match: int | None = None) -> int:
    return (await it.sessions.rewind(KEY, version, if_match, identity)).version


async def exported(it: House, version: int | str | None = None) -> bytes:
    with it.sessions.versions() as versions:
        _, _, parts = await versions.export(KEY, version)
    return b"".join(parts)


async def imported(it: House, parts: Sequence[Buffer], key: SessionKey = OTHER) -> Head:
    with it.sessions.versions() as versions:
        return await versions.import_snapshot(key, parts, None, NOBODY)


async def kept_versions(it: House, key: SessionKey = KEY) -> list[int]:
    head = await it.storage.read_head(key)
    assert head is not None
    return [generation.version for generation in head.generations]


def assert_equal(left: SequenceState, right: SequenceState) -> None:
    assert left.tokens_digest == right.tokens_digest
    assert left.pending_token_ids == right.pending_token_ids
    others = right.tensors.named_tensors()
    assert all(torch.equal(tensor, others[name]) for name, tensor in left.tensors.named_tensors().items())


def test_a_rewind_is_a_new_version_with_the_state_of_the_old_one() -> None:
    async def test() -> None:
        async with house() as it:
            states = {}
            for version, text in enumerate(("one", "two", "three"), start=1):
                await run(it.sessions, asked(text, history=History.NEW))
                states[version] = await it.state()
            assert await rewind(it, 1) == 4
            assert_equal(await it.state(), states[1])
            assert await kept_versions(it) == [4, 3, 2, 1]
            # The undone can be undone.
            assert await rewind(it, 3) == 5
            assert_equal(await it.state(), states[3])

    in_loop(test)


class OvertakingStore(MemoryStore):
    """Another writer, who has taken over an old lease, commits just before version 1 is loaded as an older one."""

    is_armed = False

    def load(self, key: SessionKey, version: int | None = None) -> tuple[Head, list[Buffer]]:
        if self.is_armed and version == 1:
            self.is_armed = False
            head, parts = super().load(key)
            generation = head.committed
            theirs = NewGeneration(
                new_generation_id(),
                parts,
                generation.digest,
                generation.position,
                created=head.created,
                updated=head.updated,
                extra=self.load_extra(key),
            )
            self.commit(key, head, theirs)
        return super().load(key, version)


def test_a_rewind_does_not_go_over_a_commit_that_it_has_not_seen() -> None:
    async def test() -> None:
        store = OvertakingStore()
        async with house(store) as it:
            _, turn = await run(it.sessions, asked("one"))
            await run(it.sessions, asked("two"))
            store.is_armed = True
            with pytest.raises(CommitConflict):
                await rewind(it, 1, if_match=2)
            assert await it.head_version() == 3
            await run(it.sessions, asked("three"))
            store.is_armed = True
            with pytest.raises(CommitConflict):
                await run(it.sessions, asked("one", turn.text, "again", may_rewind=True, if_match=4))
            assert await it.head_version() == 5

    in_loop(test)


def test_what_follows_a_rewind_is_what_would_have_followed_then() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            await fork(it)
            await run(it.sessions, asked("two"))
            await rewind(it, 1)
            answer, _ = await run(it.sessions, asked("three"))
            elsewhere, _ = await run(it.sessions, asked("three", session=OTHER))
            assert answer == elsewhere
            assert_equal(await it.state(), await it.state(OTHER))

    in_loop(test)


def test_a_rewind_to_before_the_first_turn_leaves_a_session_that_has_read_nothing() -> None:
    async def test() -> None:
        async with house() as it:
            await create(it.sessions, {"book": "Emma"})
            first, _ = await run(it.sessions, asked("one"))
            assert await rewind(it, 0) == 2
            head, record = await it.storage.load(KEY)
            assert (record, head.position, head.metadata) == (None, 0, {"book": "Emma"})
            assert (await run(it.sessions, asked("one")))[0] == first

    in_loop(test)


def test_a_repeated_rewind_is_answered_and_not_made_twice() -> None:
    async def test() -> None:
        async with house() as it:
            for text in ("one", "two"):
                await run(it.sessions, asked(text))
            by_key = RequestIdentity("back to 1", "key")
            assert [await rewind(it, 1, by_key) for _ in range(2)] == [3, 3]
            with pytest.raises(IdempotencyMismatch):
                await rewind(it, 2, RequestIdentity("back to 2", "key"))
            by_library = RequestIdentity("back to 2", is_retry=True)
            assert [await rewind(it, 2, by_library) for _ in range(2)] == [4, 4]
            assert await it.head_version() == 4

    in_loop(test)


def test_a_rewind_that_drops_the_version_it_goes_back_to_is_still_answered_when_repeated() -> None:
    async def test() -> None:
        async with house(MemoryStore(num_kept=1)) as it:
            for text in ("one", "two"):
                await run(it.sessions, asked(text))
            by_key = RequestIdentity("back to 1", "key")
            assert [await rewind(it, 1, by_key) for _ in range(2)] == [3, 3]
            assert await kept_versions(it) == [3, 2]

    in_loop(test)


def test_a_rewind_forgets_the_answers_and_the_documents_that_it_undoes() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one", idempotency_key="k1"))
            await ingest(it.sessions, in_pieces(text_of(9), 50), document_id="book")
            read_once = await it.state()
            await run(it.sessions, asked("two", idempotency_key="k2"))
            await rewind(it, 1)
            assert (await replayed(it.sessions, asked("one", idempotency_key="k1"))).version == 1
            await run(it.sessions, asked("two", idempotency_key="k2"))
            await rewind(it, 1)
            _, result = await ingest(it.sessions, in_pieces(text_of(9), 50), document_id="book")
            assert result.num_tokens > 0
            assert_equal(await it.state(), read_once)

    in_loop(test)


def test_a_rewind_leads_out_of_the_middle_of_a_document() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            before = await it.state()
            await break_off_a_document(it)
            with pytest.raises(IngestOpen):
                await run(it.sessions, asked("two"))
            assert (await kept_versions(it))[1:] == [1]
            await rewind(it, 1)
            assert_equal(await it.state(), before)
            await run(it.sessions, asked("two"))

    in_loop(test)


async def break_off_a_document(it: House) -> None:
    async def pieces() -> Any:
        yield text_of(20)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await ingest(it.sessions, pieces())
    head = await it.storage.read_head(KEY)
    assert head is not None
    assert head.open_ingest is not None


def test_a_rewind_leads_away_from_a_state_that_is_lost() -> None:
    class LosingStore(MemoryStore):
        lost: set[int]

        def load(self, key: SessionKey, version: int | None = None) -> tuple[Head, list[Buffer]]:
            self._check(key, version)
            return super().load(key, version)

        def load_extra(self, key: SessionKey, version: int | None = None) -> bytes:
            self._check(key, version)
            return super().load_extra(key, version)

        def _check(self, key: SessionKey, version: int | None) -> None:
            head = self.read_head(key)
            generation = head and head.find(version)
            if generation is not None and generation.version in self.lost:
                raise StateLost("gone", last_whole_version=1)

    async def test() -> None:
        store = LosingStore()
        store.lost = set()
        async with house(store) as it:
            await run(it.sessions, asked("one"))
            before = await it.state()
            await run(it.sessions, asked("two"))
        async with house(store) as it:
            store.lost = {2}
            with pytest.raises(StateLost):
                await run(it.sessions, asked("three"))
            assert await rewind(it, 1) == 3
            assert_equal(await it.state(), before)

    in_loop(test)


def test_a_version_that_is_not_kept_cannot_be_reached() -> None:
    async def test() -> None:
        async with house() as it:
            with pytest.raises(SessionNotFound):
                await rewind(it, 1)
            await run(it.sessions, asked("one"))
            for version in (0, 2, 7, "name"):
                for reach in (rewind, fork, exported):
                    with pytest.raises(VersionNotFound):
                        await reach(it, version)
            with pytest.raises(VersionConflict):
                await rewind(it, 1, if_match=0)
            assert await it.head_version() == 1
            assert await it.storage.read_head(OTHER) is None

    in_loop(test)


def test_a_fork_shares_nothing_with_what_it_came_from() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one", idempotency_key="k"))
            before = await it.state()
            head = await fork(it, metadata={"of": "s"})
            assert (head.version, head.position, head.metadata) == (0, before.position, {"of": "s"})
            await run(it.sessions, asked("two", session=OTHER))
            assert_equal(await it.state(), before)
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
            assert_equal(await it.state(OTHER), before)

    in_loop(test)


def test_a_fork_has_read_the_documents_of_what_it_came_from() -> None:
    async def test() -> None:
        async with house() as it:
            await ingest(it.sessions, in_pieces(text_of(9), 50), document_id="book")
            await fork(it)
            before = await it.state(OTHER)
            _, result = await ingest(it.sessions, in_pieces(text_of(9), 99), document_id="book", session=OTHER)
            assert (result.session.session_id, result.session.version) == ("other", 0)
            assert_equal(await it.state(OTHER), before)

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
                assert_equal(await there.state(key), record.state)
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


def test_a_named_version_is_reached_by_its_name_for_as_long_as_it_has_it() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            before = await it.state()
            with it.sessions.versions() as versions:
                await versions.name(KEY, None, "first")
                for text in ("two", "three", "four", "five", "six", "seven"):
                    await run(it.sessions, asked(text))
                await fork(it, "first")
                assert_equal(await it.state(OTHER), before)
                assert await rewind(it, "first") == 8
                await versions.unname(KEY, "first")
                with pytest.raises(VersionNotFound):
                    await rewind(it, "first")

    in_loop(test)


def test_the_middle_of_a_document_gets_no_name() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            await break_off_a_document(it)
            with it.sessions.versions() as versions:
                with pytest.raises(IngestOpen):
                    await versions.name(KEY, None, "half")
                assert (await versions.name(KEY, 1, "before")).find("before") is not None

    in_loop(test)


def test_a_name_given_between_two_turns_does_not_stand_in_the_way_of_the_second() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            with it.sessions.versions() as versions:
                await versions.name(KEY, None, "first")
            await run(it.sessions, asked("two"))
            head = await it.storage.read_head(KEY)
            assert head is not None
            assert (head.version, head.find("first") is not None) == (2, True)

    in_loop(test)


def test_a_regenerated_answer_takes_the_place_of_the_last_one() -> None:
    async def test() -> None:
        async with house() as it:
            first, _ = await run(it.sessions, asked("one"))
            await fork(it)
            await run(it.sessions, asked("two"))
            again = asked("one", first, "two, please", may_rewind=True)
            with pytest.raises(SessionDiverged):
                await run(it.sessions, replace(again, may_rewind=False))
            answer, turn = await run(it.sessions, again)
            session = turn.session()
            assert session is not None
            assert (session.version, session.rewound_to, session.committed) == (3, 1, True)
            assert await it.head_version() == 3
            elsewhere, _ = await run(it.sessions, asked("two, please", session=OTHER))
            assert answer == elsewhere
            assert_equal(await it.state(), await it.state(OTHER))
            assert (await replayed(it.sessions, replace(again, is_retry=True))).version == 3

    in_loop(test)


def test_a_turn_goes_back_to_the_version_that_most_of_its_messages_continue() -> None:
    async def test() -> None:
        async with house() as it:
            said: list[str] = []
            for text in ("one", "two", "three"):
                answer, _ = await run(it.sessions, asked(*said, text))
                said += [text, answer]
            _, turn = await run(it.sessions, asked(*said[:4], "other", may_rewind=True))
            session = turn.session()
            assert session is not None
            assert (session.version, session.rewound_to) == (4, 2)
            with pytest.raises(SessionDiverged):
                await run(it.sessions, asked("never said", "nor answered", "other", may_rewind=True))
            with pytest.raises(SessionDiverged):
                await run(it.sessions, asked(*said[:1], "another answer", "other", may_rewind=True))
            assert await it.head_version() == 4

    in_loop(test)


def test_a_read_only_turn_may_start_from_an_older_version_and_changes_nothing() -> None:
    async def test() -> None:
        async with house() as it:
            first, _ = await run(it.sessions, asked("one"))
            await run(it.sessions, asked("two"))
            _, turn = await run(it.sessions, asked("one", first, "other", may_rewind=True, read_only=True))
            session = turn.session()
            assert session is not None
            assert (session.version, session.rewound_to, session.committed) == (2, 1, False)
            assert await it.head_version() == 2

    in_loop(test)


def test_a_rewind_waits_for_the_turn_that_runs() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            async with it.sessions.turn(asked("two", sampling=replace(ENDLESS, max_tokens=3))) as turn:
                waiting = asyncio.create_task(rewind(it, 1))
                await asyncio.sleep(0.05)
                assert not waiting.done()
                del turn
            assert await waiting == 2

    in_loop(test)

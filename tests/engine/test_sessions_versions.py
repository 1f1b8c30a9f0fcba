"""Versions of a session: kept, named, gone back to, forked, carried elsewhere."""

import asyncio
from dataclasses import replace

import pytest

from engine.errors import (
    CommitConflict,
    IdempotencyMismatch,
    IngestOpen,
    SessionDiverged,
    SessionNotFound,
    StateLost,
    VersionConflict,
    VersionNotFound,
)
from engine.sessions import History, RequestIdentity
from engine.stores.base import Buffer, Head, NewGeneration, SessionKey, new_generation_id
from engine.stores.memory import MemoryStore
from tests.engine.sessions_harness import (
    ENDLESS,
    KEY,
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
from tests.engine.versions_harness import (
    OTHER,
    assert_same_bits,
    break_off_a_document,
    exported,
    fork,
    kept_versions,
    rewind,
)


def test_a_rewind_is_a_new_version_with_the_state_of_the_old_one() -> None:
    async def test() -> None:
        async with house() as it:
            states = {}
            for version, text in enumerate(("one", "two", "three"), start=1):
                await run(it.sessions, asked(text, history=History.NEW))
                states[version] = await it.state()
            assert await rewind(it, 1) == 4
            assert_same_bits(await it.state(), states[1])
            assert await kept_versions(it) == [4, 3, 2, 1]
            # The undone can be undone.
            assert await rewind(it, 3) == 5
            assert_same_bits(await it.state(), states[3])

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
            assert_same_bits(await it.state(), await it.state(OTHER))

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


def test_a_rewind_is_still_answered_when_the_version_that_it_went_back_to_is_gone() -> None:
    async def test() -> None:
        async with house(MemoryStore(num_kept=1)) as it:
            for text in ("one", "two"):
                await run(it.sessions, asked(text))
            by_key = RequestIdentity("back to 1", "key")
            assert [await rewind(it, 1, by_key) for _ in range(2)] == [3, 3]
            assert await kept_versions(it) == [3, 1]
            await run(it.sessions, asked("three"))
            assert await kept_versions(it) == [4, 3]
            assert await rewind(it, 1, by_key) == 3
            assert await it.head_version() == 4

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
            assert_same_bits(await it.state(), read_once)

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
            assert_same_bits(await it.state(), before)
            await run(it.sessions, asked("two"))

    in_loop(test)


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
            assert_same_bits(await it.state(), before)

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
                assert_same_bits(await it.state(OTHER), before)
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
            assert_same_bits(await it.state(), await it.state(OTHER))
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


def test_an_answer_is_regenerated_as_often_as_one_likes() -> None:
    async def test() -> None:
        async with house() as it:
            first, _ = await run(it.sessions, asked("one"))
            for version in range(2, 10):
                await run(it.sessions, asked("one", first, f"attempt {version}", may_rewind=True))
                assert await it.head_version() == version
            assert await kept_versions(it) == [9, 8, 7, 6, 1]
            await rewind(it, 1)
            assert await kept_versions(it) == [10, 9, 8, 7, 1]

    in_loop(test)

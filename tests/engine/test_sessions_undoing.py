"""The last turn of a session, taken back with every byte."""

import pytest

from engine.errors import SessionNotFound, TurnStays
from engine.stores.memory import MemoryStore
from tests.engine.replay_harness import LOGGING
from tests.engine.sessions_harness import KEY, asked, create, house, in_loop, in_pieces, ingest, run, text_of
from tests.engine.versions_harness import assert_same_bits, kept_versions, rewind


def test_a_session_goes_on_as_if_the_turn_had_never_been() -> None:
    async def test() -> None:
        async with house() as it, house() as other:
            await run(it.sessions, asked("one"))
            before = await it.state()
            await run(it.sessions, asked("two", idempotency_key="k"))
            await it.sessions.undo(KEY, 2, may_delete=False)
            assert_same_bits(await it.state(), before)
            assert await kept_versions(it) == [3, 1]
            # Nor is its key remembered: the same is said anew.
            await run(it.sessions, asked("two", idempotency_key="k"))
            await run(other.sessions, asked("one"))
            await run(other.sessions, asked("two"))
            assert_same_bits(await it.state(), await other.state())

    in_loop(test)


def test_turn_after_turn_is_taken_back_and_the_last_of_them_takes_the_session_along() -> None:
    async def test() -> None:
        async with house() as it:
            for text in ("one", "two", "three"):
                await run(it.sessions, asked(text))
            for version in (3, 2):
                await it.sessions.undo(KEY, version, may_delete=False)
            assert await kept_versions(it) == [5, 1]
            with pytest.raises(TurnStays, match="from before"):
                await it.sessions.undo(KEY, 1, may_delete=False)
            await it.sessions.undo(KEY, 1, may_delete=True)
            assert await it.storage.read_head(KEY) is None
            with pytest.raises(SessionNotFound):
                await it.sessions.undo(KEY, 1, may_delete=True)

    in_loop(test)


def test_versions_that_were_left_by_a_rewind_go_with_the_turn_that_they_know() -> None:
    async def test() -> None:
        async with house() as it:
            await create(it.sessions, {})
            for text in ("one", "two", "three"):
                await run(it.sessions, asked(text))
            await rewind(it, 1)
            assert await kept_versions(it) == [4, 3, 2, 1, 0]
            await it.sessions.undo(KEY, 1, may_delete=False)
            assert await kept_versions(it) == [5, 0]
            head, state = await it.committed()
            assert (head.position, state) == (0, None)

    in_loop(test)


def test_what_others_have_gone_on_from_stays() -> None:
    async def test() -> None:
        async with house() as it:
            for text in ("one", "two"):
                await run(it.sessions, asked(text))
            with pytest.raises(TurnStays, match="more since"):
                await it.sessions.undo(KEY, 1, may_delete=True)
            await ingest(it.sessions, in_pieces(text_of(2), 100))
            with pytest.raises(TurnStays, match="more since"):
                await it.sessions.undo(KEY, 2, may_delete=True)
            assert await it.head_version() == 3
            await run(it.sessions, asked("three"))
            await it.sessions.undo(KEY, 4, may_delete=False)
            # Back where the document was read, which is no turn.
            with pytest.raises(TurnStays, match="more since"):
                await it.sessions.undo(KEY, 2, may_delete=True)

    in_loop(test)


def test_a_turn_that_a_token_log_has_stays() -> None:
    async def test() -> None:
        async with house(MemoryStore(), config=LOGGING) as it:
            await create(it.sessions, {})
            await run(it.sessions, asked("one"))
            with pytest.raises(TurnStays, match="log"):
                await it.sessions.undo(KEY, 1, may_delete=True)

    in_loop(test)

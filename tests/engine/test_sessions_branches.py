"""Turns that go on from one version of a session: its next turn while that is committed, else a session of its own."""

import asyncio

import pytest

from engine.errors import SessionExists, SessionNotFound, VersionNotFound
from engine.sessions import Branch, NewSession
from engine.stores.base import SessionKey
from tests.engine.replay_harness import LOGGING, replay
from tests.engine.sessions_harness import ENDLESS, KEY, asked, create, house, in_loop, replayed, run
from tests.engine.versions_harness import OTHER, assert_same_bits, fork, kept_versions, rewind

THIRD = SessionKey(KEY.tenant, "third")


def test_a_turn_after_the_committed_version_is_the_sessions_next() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            _, turn = await run(it.sessions, asked("two", branch=Branch(1, OTHER)))
            session = turn.session()
            assert session is not None
            assert (session.session_id, session.version) == ("s", 2)
            assert await it.storage.read_head(OTHER) is None

    in_loop(test)


def test_a_turn_after_an_older_version_is_that_of_a_fork_and_leaves_its_session_alone() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            await run(it.sessions, asked("two"))
            committed = await it.state()
            branched, turn = await run(it.sessions, asked("three", branch=Branch(1, OTHER, ttl_seconds=60)))
            session = turn.session()
            assert session is not None
            assert (session.session_id, session.version, session.rewound_to) == ("other", 1, None)
            assert_same_bits(await it.state(), committed)
            head = await it.storage.read_head(OTHER)
            assert head is not None
            assert (head.ttl_seconds, head.version, len(head.kept)) == (60, 1, 0)

            await fork(it, 1, key=THIRD)
            assert branched == (await run(it.sessions, asked("three", session=THIRD)))[0]
            assert_same_bits(await it.state(OTHER), await it.state(THIRD))
            assert turn.usage.num_cached_tokens > 0

    in_loop(test)


def test_a_branch_that_fails_leaves_no_session() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            await run(it.sessions, asked("two"))
            async with it.sessions.turn(asked("three", branch=Branch(1, OTHER))):
                pass
            assert await it.storage.read_head(OTHER) is None
            with pytest.raises(VersionNotFound):
                await run(it.sessions, asked("three", branch=Branch(9, OTHER)))

    in_loop(test)


def test_turns_after_one_version_do_not_wait_for_each_other_beyond_the_first_two() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            async with it.sessions.turn(asked("two", branch=Branch(1, OTHER), sampling=ENDLESS)):
                waiting = asyncio.create_task(run(it.sessions, asked("two")))
                await asyncio.sleep(0)
                _, turn = await run(it.sessions, asked("two", branch=Branch(1, THIRD)))
                session = turn.session()
                assert session is not None
                assert session.session_id == "third"
            await waiting

    in_loop(test)


def test_a_branch_waits_for_no_turn_of_the_session_that_it_leaves() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            await run(it.sessions, asked("two"))
            async with it.sessions.turn(asked("three", sampling=ENDLESS)):
                _, turn = await run(it.sessions, asked("two", branch=Branch(1, OTHER)))
            assert turn.session_id == "other"
            assert await it.head_version() == 2

    in_loop(test)


def test_a_repeat_is_found_in_the_session_or_in_the_branch() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            continued = asked("two", branch=Branch(1, OTHER), idempotency_key="k")
            text, _ = await run(it.sessions, continued)
            assert (await replayed(it.sessions, continued)).response == {"text": text}
            branched = asked("three", branch=Branch(1, THIRD), idempotency_key="l")
            text, _ = await run(it.sessions, branched)
            # Back at the version that the branch began from: the repeat would find room in the session itself.
            await rewind(it, 1)
            assert (await replayed(it.sessions, branched)).response == {"text": text}
            assert await kept_versions(it, THIRD) == [1]

    in_loop(test)


def test_a_branch_takes_the_token_log_along_and_is_rebuilt_from_it() -> None:
    async def test() -> None:
        async with house(config=LOGGING) as it:
            await run(it.sessions, asked("one"))
            await run(it.sessions, asked("two"))
            await run(it.sessions, asked("three", branch=Branch(1, OTHER)))
            await run(it.sessions, asked("four", session=OTHER))
            state = await it.state(OTHER)
            await replay(it, OTHER)
            assert (await it.state(OTHER)).tokens_digest == state.tokens_digest

    in_loop(test)


def test_a_stateless_turn_may_start_from_what_a_session_knows_and_leaves_nothing() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            await run(it.sessions, asked("two"))
            await fork(it, 1)
            expected, _ = await run(it.sessions, asked("three", session=OTHER))
            begins = NewSession(source=KEY, version=1)
            said, turn = await run(it.sessions, asked("three", session=None, begins=begins))
            assert said == expected
            assert turn.session() is None
            assert turn.usage.num_written_tokens == 0
            assert await kept_versions(it) == [2, 1]

    in_loop(test)


def test_a_session_that_must_be_there_or_must_be_new_is_not_begun_or_continued() -> None:
    async def test() -> None:
        async with house() as it:
            with pytest.raises(SessionNotFound):
                await run(it.sessions, asked("one", may_begin=False))
            await create(it.sessions, {})
            await run(it.sessions, asked("one", may_begin=False))
            with pytest.raises(SessionExists):
                await run(it.sessions, asked("two", begins=NewSession()))
            begins = NewSession(metadata={"a": "b"}, ttl_seconds=60)
            await run(it.sessions, asked("two", session=OTHER, begins=begins))
            head = await it.storage.read_head(OTHER)
            assert head is not None
            assert (head.metadata, head.ttl_seconds) == ({"a": "b"}, 60)

    in_loop(test)

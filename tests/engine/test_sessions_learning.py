"""Messages that are learned and not answered."""

from typing import Any

import pytest

from engine.errors import IdempotencyMismatch, IngestOpen, SessionExists, SessionNotFound, VersionConflict
from engine.sessions import LearnRequest, Message, NewSession, RequestIdentity
from engine.snapshots.tokens_digest import INITIAL_DIGEST, extend_digest
from tests.engine.harness import tiny
from tests.engine.replay_harness import LOGGING, record_of, replay
from tests.engine.sessions_harness import KEY, asked, create, house, in_loop, run
from tests.engine.versions_harness import OTHER, assert_same_bits, break_off_a_document

SYSTEM = Message("system", "Answer with a number.")
TOLD = (SYSTEM, Message("user", "Tim has the ball."), Message("assistant", "I see."), Message("user", "And the key."))


def told(*messages: Message, **fields: Any) -> LearnRequest:
    return LearnRequest(**{"session": KEY, "messages": messages, **fields})


def test_messages_are_one_commit_of_their_tokens_and_no_answer() -> None:
    async def test() -> None:
        async with house() as it:
            await create(it.sessions, {})
            learned = await it.sessions.learn(told(*TOLD))
            session = learned.session
            checkpoint = tiny()
            expected = checkpoint.chat_format.session_start(checkpoint.tokenizer)
            for message in TOLD:
                expected += checkpoint.chat_format.message(checkpoint.tokenizer, message.role, message.content)
            head, digest = await it.sessions.describe(KEY)
            assert (session.version, session.position, head.version) == (1, len(expected), 1)
            assert learned.num_tokens == len(expected)
            assert digest == extend_digest(INITIAL_DIGEST, expected).hex()

    in_loop(test)


def test_what_was_told_is_known_to_a_client_that_resends_it() -> None:
    async def test() -> None:
        async with house() as it:
            await it.sessions.learn(told(*TOLD, begins=NewSession()))
            await it.sessions.learn(told(Message("assistant", "Ah."), session=OTHER, begins=NewSession()))
            spoken = [message.content for message in TOLD if message.role != "system"]
            _, turn = await run(it.sessions, asked(*spoken, "Good.", "Who has the ball?"))
            assert turn.usage.num_cached_tokens == (await it.state()).position - turn.usage.num_written_tokens
            head, _ = await it.sessions.describe(KEY)
            assert head.version == 2

    in_loop(test)


def test_a_system_text_that_was_told_is_not_fed_again_by_the_turns_after_it() -> None:
    async def test() -> None:
        async with house() as it:
            await it.sessions.learn(told(SYSTEM, begins=NewSession()))
            await it.sessions.learn(told(SYSTEM, session=OTHER, begins=NewSession()))
            question = Message("user", "one")
            with_system, _ = await run(it.sessions, asked("one", messages=(SYSTEM, question)))
            without, _ = await run(it.sessions, asked("one", session=OTHER))
            assert with_system == without
            assert_same_bits(await it.state(), await it.state(OTHER))

    in_loop(test)


def test_a_repeat_is_answered_and_not_learned_twice() -> None:
    async def test() -> None:
        async with house() as it:
            identity = RequestIdentity("d", "k")
            first = await it.sessions.learn(told(*TOLD, begins=NewSession(), identity=identity))
            again = await it.sessions.learn(told(*TOLD, begins=NewSession(), identity=identity))
            assert (again.session, again.num_tokens) == (first.session, 0)
            retry = RequestIdentity("d", is_retry=True)
            assert await it.sessions.learn(told(*TOLD, identity=retry)) == again
            with pytest.raises(IdempotencyMismatch):
                await it.sessions.learn(told(*TOLD, identity=RequestIdentity("other", "k")))
            assert await it.head_version() == 1

    in_loop(test)


def test_refusals_leave_the_session_as_it_was() -> None:
    async def test() -> None:
        async with house() as it:
            with pytest.raises(SessionNotFound):
                await it.sessions.learn(told(*TOLD))
            await it.sessions.learn(told(*TOLD, begins=NewSession()))
            before = await it.state()
            with pytest.raises(SessionExists):
                await it.sessions.learn(told(*TOLD, begins=NewSession()))
            with pytest.raises(VersionConflict):
                await it.sessions.learn(told(*TOLD, if_match=7))
            assert_same_bits(await it.state(), before)
            await break_off_a_document(it)
            with pytest.raises(IngestOpen):
                await it.sessions.learn(told(*TOLD))

    in_loop(test)


def test_a_token_log_has_what_was_told() -> None:
    async def test() -> None:
        async with house(config=LOGGING) as it:
            await it.sessions.learn(told(*TOLD, begins=NewSession()))
            await run(it.sessions, asked("one"))
            before = await record_of(it)
            await replay(it)
            after = await record_of(it)
            assert after.state.tokens_digest == before.state.tokens_digest
            assert (after.ledger, after.system_digest) == (before.ledger, before.system_digest)

    in_loop(test)

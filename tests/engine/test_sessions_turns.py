"""A turn of a session, on the tiny float64 model: what is fed, what is remembered, what is told (SESSIONS.md 1)."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest
import torch

from engine.errors import (
    IdempotencyMismatch,
    SessionDiverged,
    SessionExists,
    SessionNotFound,
    VersionConflict,
)
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import Sequence
from engine.sessions import History, Message, Turn
from engine.stores.base import SessionKey
from engine.stores.memory import MemoryStore
from tests.engine.harness import tiny
from tests.engine.sessions_harness import (
    GREEDY,
    KEY,
    asked,
    create,
    house,
    in_loop,
    replayed,
    run,
)


def test_two_turns_equal_one_run_over_the_concatenated_tokens() -> None:
    """Row 8: the digest exactly, the tensors within the tolerance of another split."""

    async def test() -> None:
        async with house() as it:
            first, _ = await run(it.sessions, asked("What is it?"))
            await run(it.sessions, asked("And then?"))
            _, record = await it.storage.load(KEY)
            assert record is not None
            checkpoint = tiny()
            tokenizer, chat = checkpoint.tokenizer, checkpoint.chat_format
            state = record.state
            # The same tokens at once, up to where the second answer began.
            async with it.sessions.turn(asked("What is it?", session=None)) as turn:
                assert isinstance(turn, Turn)
                outputs = [output async for _, output in turn.outputs()]
            sampled = [token_id for output in outputs for token_id in output.token_ids]
            ids = [*chat.session_start(tokenizer), *chat.message(tokenizer, "user", "What is it?")]
            ids += [*chat.generation_prompt(tokenizer), *sampled, tokenizer.special.end]
            ids += [*chat.message(tokenizer, "user", "And then?"), *chat.generation_prompt(tokenizer)]
            async with aclosing(it.engine.generate(Sequence("whole", ids, GREEDY))) as whole:
                last = [output async for output in whole][-1]
            assert last.state is not None
            assert first == turn.text
            assert last.state.tokens_digest == state.tokens_digest
            for name, tensor in last.state.tensors.named_tensors().items():
                torch.testing.assert_close(state.tensors.named_tensors()[name], tensor, rtol=1e-9, atol=1e-9)

    in_loop(test)


def test_only_new_messages_and_the_whole_history_are_the_same_conversation() -> None:
    async def test() -> None:
        other = SessionKey("default", "other")
        async with house() as it:
            said = ["one"]
            for question in ("two", "three"):
                answer, _ = await run(it.sessions, asked(*said))
                only_new, _ = await run(it.sessions, asked(said[-1], session=other))
                assert answer == only_new
                said += [answer, question]
            assert await it.sessions.describe(KEY) != await it.sessions.describe(other)
            assert (await it.sessions.describe(KEY))[1] == (await it.sessions.describe(other))[1]
            assert (await it.state()).position == (await it.state(other)).position

    in_loop(test)


def test_another_server_continues_from_the_store_as_the_first_would_have_from_memory() -> None:
    async def test() -> None:
        store, twin = MemoryStore(), MemoryStore()
        async with house(store) as it:
            await run(it.sessions, asked("one"))
        async with house(store) as it:
            resumed, _ = await run(it.sessions, asked("two"))
            assert it.observed.tiers == ["store"]
            resumed_state = await it.state()
        async with house(twin) as it:
            await run(it.sessions, asked("one"))
            uninterrupted, _ = await run(it.sessions, asked("two"))
            assert it.observed.tiers == ["device"]
            state = await it.state()
        assert resumed == uninterrupted
        for name, tensor in state.tensors.named_tensors().items():
            assert torch.equal(resumed_state.tensors.named_tensors()[name], tensor), name

    in_loop(test)


def test_every_commit_adds_one_to_the_version_and_a_created_session_is_at_zero() -> None:
    async def test() -> None:
        async with house() as it:
            head = await create(it.sessions, {"book": "Emma"})
            assert (head.version, head.num_bytes) == (0, 0)
            with pytest.raises(SessionExists):
                await create(it.sessions, {})
            for version in (1, 2):
                _, turn = await run(it.sessions, asked("Hi"))
                assert turn.session() is not None
                assert await it.head_version() == version
            head, _ = await it.sessions.describe(KEY)
            assert head.metadata == {"book": "Emma"}
            _, turn = await run(it.sessions, asked("Hi", session=SessionKey("default", "implicit")))
            assert turn.base_version == 0
            assert await it.head_version(SessionKey("default", "implicit")) == 1

    in_loop(test)


def test_usage_tells_what_was_remembered_and_what_was_learned() -> None:
    async def test() -> None:
        async with house() as it:
            _, first = await run(it.sessions, asked("one"))
            position = (await it.state()).position
            assert (first.usage.num_cached_tokens, first.usage.num_written_tokens) == (0, position)
            _, second = await run(it.sessions, asked("two"))
            assert second.usage.num_cached_tokens == position
            assert second.usage.num_written_tokens == (await it.state()).position - position
            assert it.observed.num_tokens == [position, second.usage.num_written_tokens]
            _, reader = await run(it.sessions, asked("three", read_only=True))
            assert reader.usage.num_written_tokens == 0

    in_loop(test)


def test_readers_run_beside_a_writer_and_leave_no_trace() -> None:
    async def test() -> None:
        async with house() as it:
            with pytest.raises(SessionNotFound):
                await run(it.sessions, asked("one", read_only=True))
            await run(it.sessions, asked("one"))
            before = await it.sessions.describe(KEY)
            async with it.sessions.turn(asked("two")):
                request = asked("what was it?", read_only=True, idempotency_key="k")
                answers = await asyncio.gather(*(run(it.sessions, request) for _ in range(3)))
            assert len({answer for answer, _ in answers}) == 1
            session = answers[0][1].session()
            assert session is not None
            assert (session.version, session.committed) == (1, False)
            assert await it.sessions.describe(KEY) == before
            assert (await it.storage.load_stored(KEY)).find_turn(1, request.identity) is None

    in_loop(test)


def test_a_stateless_turn_needs_no_store_and_leaves_nothing() -> None:
    async def test() -> None:
        async with house() as it:
            text, turn = await run(it.sessions, asked("one", session=None))
            again, _ = await run(it.sessions, asked("one", session=None))
            assert text == again
            assert turn.session() is None
            assert await it.sessions.list_sessions("default", 10, None) == []

    in_loop(test)


def test_a_repeated_key_is_answered_and_not_learned_again() -> None:
    async def test() -> None:
        async with house() as it:
            request = asked("one", idempotency_key="k", note={"user": "me"})
            text, _ = await run(it.sessions, request)
            await run(it.sessions, asked("two"))
            stored = await replayed(it.sessions, request)
            assert stored.response == {"text": text}
            assert stored.note == {"user": "me"}
            assert await it.head_version() == 2
            with pytest.raises(IdempotencyMismatch):
                await run(it.sessions, asked("three", idempotency_key="k"))

    in_loop(test)


def test_a_retry_of_the_last_turn_is_answered_even_when_its_version_has_passed() -> None:
    async def test() -> None:
        store = MemoryStore()
        async with house(store) as it:
            await run(it.sessions, asked("one"))
            await run(it.sessions, asked("two", if_match=1))
        async with house(store) as it:
            assert (await replayed(it.sessions, asked("two", if_match=1, is_retry=True))).version == 2
            # The same words without a sign of a retry are said again.
            await run(it.sessions, asked("two"))
            assert await it.head_version() == 3

    in_loop(test)


def test_a_version_that_is_not_the_committed_one_is_refused() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one", if_match=0))
            for version in (0, 2):
                with pytest.raises(VersionConflict) as refused:
                    await run(it.sessions, asked("two", if_match=version))
                assert refused.value.current == 1
            await run(it.sessions, asked("two", if_match=1))

    in_loop(test)


def test_a_history_that_departs_is_refused_and_changes_nothing() -> None:
    async def test() -> None:
        async with house() as it:
            answer, _ = await run(it.sessions, asked("one"))
            with pytest.raises(SessionDiverged):
                await run(it.sessions, asked("one", answer + " not", "two"))
            assert await it.head_version() == 1
            await run(it.sessions, asked("one", answer + " not", "two", history=History.NEW))
            assert await it.head_version() == 2

    in_loop(test)


def test_a_system_message_on_every_call_is_the_same_as_on_the_first() -> None:
    async def test() -> None:
        system = Message("system", "be brief")
        often, once = asked("one"), asked("one", session=SessionKey("default", "once"))
        async with house() as it:
            for request in (often, once):
                await run(it.sessions, replace(request, messages=(system, *request.messages)))
            await run(it.sessions, replace(often, messages=(system, *asked("two").messages)))
            await run(it.sessions, replace(once, messages=asked("two").messages))
            assert (await it.state()).tokens_digest == (await it.state(SessionKey("default", "once"))).tokens_digest
            await run(it.sessions, replace(often, messages=(Message("system", "be long"), *asked("two").messages)))
            await run(it.sessions, replace(once, messages=asked("two").messages))
            assert (await it.state()).tokens_digest != (await it.state(SessionKey("default", "once"))).tokens_digest

    in_loop(test)


def test_a_deleted_session_is_gone_and_its_id_begins_anew() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            await it.sessions.delete(KEY)
            for gone in (it.sessions.delete(KEY), it.sessions.describe(KEY)):
                with pytest.raises(SessionNotFound):
                    await gone
            _, turn = await run(it.sessions, asked("one"))
            assert turn.usage.num_cached_tokens == 0

    in_loop(test)


def test_a_session_is_not_deleted_under_a_writer() -> None:
    async def test() -> None:
        async with house() as it:
            async with it.sessions.turn(asked("one")):
                deletion = asyncio.create_task(it.sessions.delete(KEY))
                await asyncio.sleep(0.05)
                assert not deletion.done()
            with pytest.raises(SessionNotFound):
                await deletion

    in_loop(test)


def test_a_seed_and_a_position_decide_a_draw_also_after_a_restart() -> None:
    async def test() -> None:
        sampled = SamplingParams(temperature=1.0, seed=7, max_tokens=8)
        texts = []
        for _ in range(2):
            store = MemoryStore()
            async with house(store) as it:
                await run(it.sessions, asked("one", sampling=sampled))
            async with house(store) as it:
                texts.append((await run(it.sessions, asked("two", sampling=sampled)))[0])
        assert texts[0] == texts[1]

    in_loop(test)


def test_copies_in_memory_are_not_used_when_another_server_has_committed() -> None:
    async def test() -> None:
        store = MemoryStore()
        async with house(store) as here, house(store) as there:
            for number, it in enumerate((here, there, here, here)):
                await run(it.sessions, asked(f"turn {number}"))
            assert here.observed.tiers == ["store", "device"]
            assert there.observed.tiers == ["store"]
            assert await here.head_version() == 4
            _, digest = await here.sessions.describe(KEY)
            assert digest == (await there.state()).tokens_digest.hex()

    in_loop(test)

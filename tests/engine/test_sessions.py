"""A turn is a transaction, on the tiny float64 model and real stores (SESSIONS.md 1)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.errors import (
    CommitConflict,
    Draining,
    EmptyPrompt,
    IdempotencyMismatch,
    IngestOffset,
    IngestOpen,
    InvalidUnicode,
    SessionBusy,
    SessionDiverged,
    SessionExists,
    SessionNotFound,
    StoreUnavailable,
    VersionConflict,
)
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence
from engine.sessions import History, Message, SessionConfig, Turn
from engine.stores.base import Head, NewGeneration, SessionKey
from engine.stores.memory import MemoryStore
from tests.engine.harness import tiny
from tests.engine.sessions_harness import (
    ENDLESS,
    GREEDY,
    KEY,
    asked,
    house,
    in_loop,
    in_pieces,
    ingest,
    replayed,
    run,
    text_of,
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
                outputs = [output async for output in turn.outputs()]
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
            assert it.observed.tiers == ["host"]
            state = await it.state()
        assert resumed == uninterrupted
        for name, tensor in state.tensors.named_tensors().items():
            assert torch.equal(resumed_state.tensors.named_tensors()[name], tensor), name

    in_loop(test)


def test_every_commit_adds_one_to_the_version_and_a_created_session_is_at_zero() -> None:
    async def test() -> None:
        async with house() as it:
            head = await it.sessions.create(KEY, {"book": "Emma"}, None)
            assert (head.version, head.num_bytes) == (0, 0)
            with pytest.raises(SessionExists):
                await it.sessions.create(KEY, {}, None)
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


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_turn_that_is_left_takes_nothing_along(phase: str) -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            before = await it.state()

            async def leave() -> None:
                async with it.sessions.turn(asked("two", sampling=ENDLESS)) as turn:
                    assert isinstance(turn, Turn)
                    async with aclosing(turn.outputs()) as outputs:
                        async for output in outputs:
                            if phase == "decode" and output.token_ids:
                                raise ConnectionError
                            if phase == "prefill":
                                raise ConnectionError

            with pytest.raises(ConnectionError):
                await leave()
            assert await it.head_version() == 1
            while it.engine.stats().num_slots_in_use:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await run(it.sessions, asked("two"))
            assert (await it.state()).position > before.position
            assert await it.head_version() == 2

    in_loop(test)


def test_a_cancelled_turn_gives_the_session_back_at_once() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            running = asyncio.create_task(run(it.sessions, asked("two", sampling=ENDLESS)))
            await asyncio.sleep(0.1)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            async with asyncio.timeout(0.9):
                await run(it.sessions, asked("three"))
            assert await it.head_version() == 2

    in_loop(test)


class SlowStore(MemoryStore):
    """Commits take a while; `began` says that one has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.began = asyncio.Event()

    def commit(self, key: SessionKey, base: Head | None, new: NewGeneration) -> Head:
        self.loop.call_soon_threadsafe(self.began.set)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.2), self.loop).result()
        return super().commit(key, base, new)


def test_a_commit_that_has_begun_is_not_taken_back_by_a_disconnect() -> None:
    async def test() -> None:
        store = SlowStore()
        async with house(store) as it:
            running = asyncio.create_task(run(it.sessions, asked("one")))
            await store.began.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert await it.head_version() == 1
            repeated = await replayed(it.sessions, asked("one", is_retry=True))
            assert repeated.version == 1

    in_loop(test)


class FailingStore(MemoryStore):
    """The calls named in `failing` raise StoreUnavailable."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: set[str] = set()

    def _fail(self, name: str) -> None:
        if name in self.failing:
            raise StoreUnavailable("out for the test")

    def read_head(self, key: SessionKey) -> Head | None:
        self._fail("read_head")
        return super().read_head(key)

    def load(self, key: SessionKey, version: int | None = None) -> Any:
        self._fail("load")
        return super().load(key, version)

    def commit(self, key: SessionKey, base: Head | None, new: NewGeneration) -> Head:
        self._fail("commit")
        head = super().commit(key, base, new)
        self._fail("reply")
        return head

    def acquire_lease(self, key: SessionKey, owner: str, seconds: float) -> bool:
        self._fail("lease")
        return super().acquire_lease(key, owner, seconds)


@pytest.mark.parametrize("call", ["lease", "read_head", "load", "commit"])
def test_a_store_that_fails_fails_the_turn_and_leaves_the_session(call: str) -> None:
    async def test() -> None:
        store = FailingStore()
        async with house(store) as it:
            await run(it.sessions, asked("one"))
        async with house(store) as it:
            store.failing = {call}
            with pytest.raises(StoreUnavailable):
                await run(it.sessions, asked("two"))
            store.failing = set()
            assert await it.head_version() == 1
            await run(it.sessions, asked("two"))
            assert await it.head_version() == 2

    in_loop(test)


def test_a_lost_reply_of_a_commit_is_recognised_as_mine() -> None:
    async def test() -> None:
        store = FailingStore()
        async with house(store) as it:
            await run(it.sessions, asked("one"))
            store.failing = {"reply"}
            asyncio.get_running_loop().call_later(0.1, store.failing.clear)
            await run(it.sessions, asked("two"))
            assert await it.head_version() == 2

    in_loop(test)


def test_another_writer_that_commits_first_wins_and_this_turn_is_not_applied() -> None:
    async def test() -> None:
        store = MemoryStore()
        async with house(store) as mine, house(store) as other:
            await run(mine.sessions, asked("one"))

            async def overtaken() -> None:
                async with mine.sessions.turn(asked("two")) as turn:
                    assert isinstance(turn, Turn)
                    _ = [output async for output in turn.outputs()]
                    head, record = await other.storage.load(KEY)
                    assert record is not None
                    stored = await other.storage.load_stored(KEY)
                    await other.storage.commit(KEY, head, record, stored)
                    await turn.commit({})

            with pytest.raises(CommitConflict):
                await overtaken()
            assert await mine.head_version() == 2
            assert (await mine.state()).position == (await other.state()).position

    in_loop(test)


def test_one_writes_one_waits_and_the_third_is_told_to_come_back() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))
            async with it.sessions.turn(asked("two")):
                waiting = asyncio.create_task(run(it.sessions, asked("three")))
                await asyncio.sleep(0.05)
                with pytest.raises(SessionBusy) as refused:
                    await run(it.sessions, asked("four"))
                assert refused.value.retry_after == 1
                assert not waiting.done()
            await waiting
            assert await it.head_version() == 2
            await run(it.sessions, asked("four"))

    in_loop(test)


def test_the_lease_of_a_killed_server_is_taken_over_when_it_runs_out() -> None:
    async def test() -> None:
        store = MemoryStore()
        async with house(store) as it:
            assert store.acquire_lease(KEY, "a server that was killed", 1.0)
            await run(it.sessions, asked("one"))
            assert store.acquire_lease(KEY, "a server that goes on writing", 60.0)
            with pytest.raises(SessionBusy):
                await run(it.sessions, asked("two"))

    in_loop(test)


def test_a_long_turn_renews_its_lease() -> None:
    async def test() -> None:
        store = MemoryStore()
        async with house(store, SessionConfig(lease_seconds=0.3)) as it, it.sessions.turn(asked("one")):
            for _ in range(8):
                await asyncio.sleep(0.1)
                assert not store.acquire_lease(KEY, "another", 1.0)
        assert store.acquire_lease(KEY, "another", 1.0)

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
            assert (await it.storage.load_stored(KEY)).find_turn(1, "k", request.digest, is_retry=False) is None

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


@pytest.mark.parametrize("num_bytes", [1, 7, 333, 100_000])
def test_the_pieces_of_an_upload_and_its_commits_do_not_change_what_is_learned(num_bytes: int) -> None:
    async def test() -> None:
        raw = text_of(12)
        async with house() as it:
            progress, result = await ingest(it.sessions, in_pieces(raw, num_bytes))
            head, digest = await it.sessions.describe(KEY)
            assert result.num_bytes == len(raw)
            assert [step.version for step in progress] == list(range(1, head.version))
            assert len(progress) >= 2
            tokenizer, chat = tiny().tokenizer, tiny().chat_format
            ids = [*chat.session_start(tokenizer), *chat.document_start(tokenizer)]
            ids += [*tokenizer.encode(raw.decode()), *chat.document_end(tokenizer)]
            whole = await it.engine.feed(Sequence("whole", ids))
            assert whole.state is not None
            assert whole.state.tokens_digest.hex() == digest
            assert head.position == len(ids) == result.num_tokens

    in_loop(test)


async def cut_after(raw: bytes, num_bytes: int) -> AsyncIterator[bytes]:
    async for piece in in_pieces(raw[:num_bytes], 50):
        yield piece
    raise ConnectionError


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_an_interrupted_document_goes_on_where_its_last_commit_ended(share: float) -> None:
    async def test() -> None:
        raw = text_of(14)
        async with house() as it:
            await ingest(it.sessions, in_pieces(raw, 64))
            _, uninterrupted = await it.sessions.describe(KEY)
        store = MemoryStore()
        async with house(store) as it:
            with pytest.raises(ConnectionError):
                await ingest(it.sessions, cut_after(raw, int(len(raw) * share)), document_id="book")
            head, _ = await it.sessions.describe(KEY)
            assert head.open_ingest is not None
            assert head.open_ingest.document_id == "book"
        async with house(store) as it:
            offset = head.open_ingest.offset
            assert 0 < offset < len(raw) * share
            for wrong in (0, offset - 1, offset + 1):
                with pytest.raises(IngestOffset) as refused:
                    await ingest(it.sessions, in_pieces(raw[wrong:], 99), document_id="book", offset=wrong)
                assert refused.value.expected == offset
            _, result = await ingest(it.sessions, in_pieces(raw[offset:], 99), document_id="book", offset=offset)
            head, digest = await it.sessions.describe(KEY)
            assert digest == uninterrupted
            assert result.num_bytes == len(raw)
            assert head.open_ingest is None

    in_loop(test)


def test_while_a_document_is_open_others_may_read_and_nobody_else_may_write() -> None:
    async def test() -> None:
        raw = text_of(14)
        async with house() as it:
            with pytest.raises(ConnectionError):
                await ingest(it.sessions, cut_after(raw, len(raw) // 2), document_id="book")
            with pytest.raises(IngestOpen):
                await run(it.sessions, asked("one"))
            with pytest.raises(IngestOpen):
                await ingest(it.sessions, in_pieces(raw, 99), document_id="another")
            with pytest.raises(IngestOpen):
                await ingest(it.sessions, in_pieces(raw, 99))
            await run(it.sessions, asked("one", read_only=True))
            head, _ = await it.sessions.describe(KEY)
            assert head.open_ingest is not None
            # A document may be ended where it stands.
            await ingest(it.sessions, in_pieces(b"", 1), offset=head.open_ingest.offset)
            await run(it.sessions, asked("one"))

    in_loop(test)


def test_a_document_that_was_read_is_not_learned_twice() -> None:
    async def test() -> None:
        raw = text_of(10)
        async with house() as it:
            _, first = await ingest(it.sessions, in_pieces(raw, 64), document_id="book", idempotency_key="k")
            await run(it.sessions, asked("one"))
            before = await it.sessions.describe(KEY)
            for fields in ({"document_id": "book"}, {"idempotency_key": "k"}):
                assert await ingest(it.sessions, in_pieces(raw, 33), **fields) == ([], first)
            # The last part of an upload, sent again because its answer was lost.
            assert await ingest(it.sessions, in_pieces(raw[40:], 33), document_id="book", offset=40) == ([], first)
            for other in (raw[:-1], raw + b"x", raw.replace(b"0", b"1")):
                with pytest.raises(IdempotencyMismatch):
                    await ingest(it.sessions, in_pieces(other, 64), document_id="book")
            assert await it.sessions.describe(KEY) == before
            # Without a name it is a document of its own.
            await ingest(it.sessions, in_pieces(raw, 64))
            assert await it.sessions.describe(KEY) != before

    in_loop(test)


@pytest.mark.parametrize(
    ("raw", "error"), [(b"", EmptyPrompt), (b"ok\n\xff", InvalidUnicode), (b"\xc3", InvalidUnicode)]
)
def test_a_document_that_cannot_be_read_leaves_no_session(raw: bytes, error: type[Exception]) -> None:
    async def test() -> None:
        async with house() as it:
            with pytest.raises(error):
                await ingest(it.sessions, in_pieces(raw, 2))
            assert await it.head_version() is None

    in_loop(test)


def test_a_question_after_a_document_is_a_turn_like_any_other() -> None:
    async def test() -> None:
        async with house() as it:
            await ingest(it.sessions, in_pieces(text_of(3), 64))
            position = (await it.state()).position
            answer, turn = await run(it.sessions, asked("what was it?"))
            assert turn.usage.num_cached_tokens == position
            await run(it.sessions, asked("what was it?", answer, "and what else?"))

    in_loop(test)


def test_draining_lets_a_turn_finish_and_commit_and_takes_no_other() -> None:
    async def test() -> None:
        async with house() as it:
            running = asyncio.create_task(run(it.sessions, asked("one", sampling=replace(GREEDY, max_tokens=30))))
            await asyncio.sleep(0.05)
            draining = asyncio.create_task(it.sessions.drain(30.0))
            await asyncio.sleep(0)
            with pytest.raises(Draining):
                await run(it.sessions, asked("two"))
            await asyncio.gather(running, draining)
            assert await it.head_version() == 1

    in_loop(test)


def test_a_drain_that_runs_out_of_time_commits_what_was_said() -> None:
    async def test() -> None:
        async with house() as it:
            running = asyncio.create_task(run(it.sessions, asked("one", sampling=ENDLESS)))
            await asyncio.sleep(0.2)
            await it.sessions.drain(0.1)
            text, _ = await running
            assert await it.head_version() == 1
            assert text

    in_loop(test)


def test_a_drain_stops_a_document_at_its_last_commit() -> None:
    async def test() -> None:
        async with house() as it:
            reading = asyncio.create_task(ingest(it.sessions, in_pieces(text_of(4000), 1000)))
            while (await it.head_version() or 0) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await it.sessions.drain(0.1)
            with pytest.raises(Draining):
                await reading
            head, _ = await it.sessions.describe(KEY)
            assert head.open_ingest is not None

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
            assert here.observed.tiers == ["store", "host"]
            assert there.observed.tiers == ["store"]
            assert await here.head_version() == 4
            _, digest = await here.sessions.describe(KEY)
            assert digest == (await there.state()).tokens_digest.hex()

    in_loop(test)

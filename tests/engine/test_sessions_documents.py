"""A document is a series of commits, and read once."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from engine.errors import (
    Draining,
    EmptyPrompt,
    IdempotencyMismatch,
    IngestOffset,
    IngestOpen,
    InvalidUnicode,
    QueueFull,
)
from engine.sequence import Sequence
from engine.stores.base import SessionKey
from engine.stores.memory import MemoryStore
from tests.engine.engines import until
from tests.engine.harness import tiny
from tests.engine.sessions_harness import (
    KEY,
    asked,
    house,
    in_loop,
    in_pieces,
    ingest,
    repeated,
    run,
    text_of,
)


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
                assert await ingest(it.sessions, in_pieces(raw, 33), **fields) == ([], repeated(first))
            # The last part of an upload, sent again because its answer was lost.
            assert await ingest(it.sessions, in_pieces(raw[40:], 33), document_id="book", offset=40) == (
                [],
                repeated(first),
            )
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


def test_a_document_that_has_begun_waits_for_its_next_place_and_one_that_has_not_is_refused() -> None:
    async def test() -> None:
        async with house() as it:
            raw, num_others = text_of(12), it.engine.config.max_num_sequences + it.engine.config.max_num_waiting
            half = asyncio.Event()

            async def pieces() -> AsyncIterator[bytes]:
                yield raw[: len(raw) // 2]
                await half.wait()
                yield raw[len(raw) // 2 :]

            reading = asyncio.create_task(ingest(it.sessions, pieces()))
            while (await it.head_version() or 0) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await until(lambda: it.engine.stats().num_running == 0)
            with it.engine.places("others", num_others):
                half.set()
                with pytest.raises(QueueFull):
                    await ingest(it.sessions, in_pieces(raw, 1000), session=SessionKey("default", "late"))
                assert not (await asyncio.wait([reading], timeout=0.2))[0]
            _, result = await reading
            assert result.num_bytes == len(raw)
            await it.sessions.drain(10)

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

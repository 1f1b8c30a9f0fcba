"""What replays are for, lost snapshots and other models; and what may be in their way."""

import asyncio
from array import array
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atlas_model.text import train_tokenizer
from engine.errors import (
    IdempotencyMismatch,
    IngestOpen,
    InvalidRequest,
    LogLost,
    SessionNotFound,
    StateCorrupt,
    StateLost,
    StateModelMismatch,
    TokenizerMismatch,
    VersionConflict,
)
from engine.sequence import Sequence
from engine.sessions import (
    ReplayProgress,
    ReplayRequest,
    ReplayResult,
    RequestIdentity,
)
from engine.snapshots.token_log import encode_record, read_history
from engine.snapshots.tokens_digest import INITIAL_DIGEST, extend_digest
from engine.stores.base import Head
from engine.stores.local import LocalStore
from engine.stores.memory import MemoryStore
from tests.engine.harness import assert_same_session
from tests.engine.replay_harness import LOGGING, head_of, log_of, record_of, replay
from tests.engine.sessions_harness import (
    KEY,
    asked,
    create,
    house,
    in_loop,
    in_pieces,
    ingest,
    repeated,
    run,
    text_of,
)
from tests.engine.versions_harness import OTHER, break_off_a_document, fork, rewind
from tests.tiny import tiny_checkpoint


def local_store(folder: Path) -> LocalStore:
    return LocalStore(folder / "sessions")


def blob_of(folder: Path, head: Head) -> Path:
    return folder / "sessions" / "blobs" / head.generation


def log_file_of(folder: Path, head: Head) -> Path:
    assert head.log_id is not None
    return folder / "sessions" / "logs" / head.log_id


def test_a_lost_snapshot_is_made_anew_with_the_documents_that_are_never_read_twice(tmp_path: Path) -> None:
    async def test() -> None:
        async with house(local_store(tmp_path), LOGGING) as it:
            document = {"document_id": "book", "idempotency_key": "k"}
            _, first = await ingest(it.sessions, in_pieces(text_of(20), 100), **document)
            await run(it.sessions, asked("one"))
            before, head = await record_of(it), await head_of(it)
            await fork(it)
            other = await head_of(it, OTHER)
        for each in (head, other):
            blob_of(tmp_path, each).unlink()
        async with house(local_store(tmp_path), LOGGING) as it:
            with pytest.raises(StateLost):
                await run(it.sessions, asked("two"))
            await replay(it)
            assert_same_session((await record_of(it)).state, before.state)
            _, again = await ingest(it.sessions, in_pieces(text_of(20), 100), **document)
            assert again == repeated(first)
            await run(it.sessions, asked("two"))
            await replay(it, OTHER)
            _, forked = await ingest(it.sessions, in_pieces(text_of(20), 100), session=OTHER, **document)
            assert forked.session.session_id == OTHER.session_id
            assert_same_session((await record_of(it, OTHER)).state, before.state)

    in_loop(test)


def test_a_corrupt_snapshot_is_made_anew_and_its_answers_are_kept(tmp_path: Path) -> None:
    async def test() -> None:
        async with house(local_store(tmp_path), LOGGING) as it:
            await run(it.sessions, asked("one", idempotency_key="k"))
            before, head = await record_of(it), await head_of(it)
        raw = bytearray(blob_of(tmp_path, head).read_bytes())
        raw[head.num_bytes // 2] ^= 1
        blob_of(tmp_path, head).write_bytes(raw)
        async with house(local_store(tmp_path), LOGGING) as it:
            with pytest.raises(StateCorrupt):
                await run(it.sessions, asked("two"))
            await replay(it)
            assert_same_session((await record_of(it)).state, before.state)
            stored = await it.storage.load_stored(KEY)
            assert [turn.key for turn in stored.turns] == ["k", None]

    in_loop(test)


def test_another_model_with_the_same_tokenizer_reads_the_session_anew() -> None:
    async def test() -> None:
        store, other_model = MemoryStore(), tiny_checkpoint(seed=1)
        async with house(store, LOGGING) as it:
            await ingest(it.sessions, in_pieces(text_of(20), 100), document_id="book")
            await run(it.sessions, asked("one", idempotency_key="k"))
            before, stored = await record_of(it), await it.storage.load_stored(KEY)
        async with house(store, LOGGING, checkpoint=other_model) as it:
            with pytest.raises(StateModelMismatch):
                await run(it.sessions, asked("two"))
            await replay(it)
            after = await record_of(it)
            assert replace(after, state=before.state) == before
            token_ids = array("I")
            for record in read_history(await log_of(it)):
                token_ids.extend(record.token_ids)
            alone = (await it.engine.feed(Sequence("alone", token_ids))).state
            assert alone is not None
            assert_same_session(replace(after.state, pending_token_ids=()), alone)
            again = await it.storage.load_stored(KEY)
            assert (again.turns[:-1], again.documents) == (stored.turns, stored.documents)
            await run(it.sessions, asked("two"))
            before = await record_of(it)
            await replay(it)
            assert_same_session((await record_of(it)).state, before.state)

    in_loop(test)


def test_another_tokenizer_is_refused_by_both_names_and_the_session_stays() -> None:
    async def test() -> None:
        store = MemoryStore()
        other = replace(tiny_checkpoint(seed=1), tokenizer=train_tokenizer(["another text"] * 9, vocab_size=290))
        async with house(store, LOGGING) as it:
            await create(it.sessions, {})
            await run(it.sessions, asked("one"))
            head = await head_of(it)
            (name,) = {record.tokenizer.hex() for record in read_history(await log_of(it))}
        async with house(store, LOGGING, checkpoint=other) as it:
            with pytest.raises(TokenizerMismatch, match=name) as caught:
                await replay(it)
            assert caught.value.code == "state_model_mismatch"
            assert caught.value.model_fingerprint in caught.value.message
            assert caught.value.model_fingerprint != name
            assert await it.storage.read_head(KEY) == head
            # What it reads from the beginning on is its own.
            await rewind(it, 0)
            await run(it.sessions, asked("one"))
            before = await record_of(it)
            await replay(it)
            assert_same_session((await record_of(it)).state, before.state)

    in_loop(test)


def test_a_replay_that_is_left_changes_nothing_and_frees_the_session() -> None:
    async def test() -> None:
        async with house(config=LOGGING) as it:
            await ingest(it.sessions, in_pieces(text_of(30), 100))
            before, head = await record_of(it), await head_of(it)
            async with it.sessions.replay(ReplayRequest(KEY)) as steps:
                assert isinstance(await anext(steps), ReplayProgress)
                waiting = asyncio.create_task(run(it.sessions, asked("one")))
                await asyncio.sleep(0.05)
                assert not waiting.done()
                assert await it.storage.read_head(KEY) == head
                await steps.aclose()
            await waiting
            assert (await head_of(it)).version == head.version + 1
            await rewind(it, head.version)
            assert_same_session((await record_of(it)).state, before.state, tolerance=0)

    in_loop(test)


def test_a_version_named_during_a_replay_is_no_other_writer() -> None:
    async def test() -> None:
        async with house(config=LOGGING) as it:
            await run(it.sessions, asked("one"))
            async with it.sessions.replay(ReplayRequest(KEY)) as steps, aclosing(steps):
                await anext(steps)
                with it.sessions.versions() as versions:
                    await versions.name(KEY, None, "first")
                assert [type(step) async for step in steps] == [ReplayResult]
            head = await head_of(it)
            assert (head.version, head.find("first") is not None) == (2, True)

    in_loop(test)


def test_a_replay_honours_the_version_and_is_not_made_twice() -> None:
    async def test() -> None:
        async with house(config=LOGGING) as it:
            with pytest.raises(SessionNotFound):
                await replay(it)
            await run(it.sessions, asked("one"))
            with pytest.raises(VersionConflict):
                await replay(it, if_match=7)
            identity = RequestIdentity("replay", "key")
            _, result = await replay(it, if_match=1, identity=identity)
            assert await replay(it, if_match=1, identity=identity) == ([], result)
            assert await it.head_version() == 2
            with pytest.raises(IdempotencyMismatch):
                await replay(it, identity=RequestIdentity("another", "key"))

    in_loop(test)


def test_a_log_that_is_not_the_sessions_is_refused_with_both_digests(tmp_path: Path) -> None:
    async def test() -> None:
        async with house(local_store(tmp_path), LOGGING) as it:
            await run(it.sessions, asked("one"))
            head = await head_of(it)
            (record,) = read_history(await log_of(it))
            token_ids = record.token_ids[::-1]
            tokens_digest = extend_digest(INITIAL_DIGEST, token_ids)
            other = encode_record(replace(record, token_ids=token_ids, tokens_digest=tokens_digest))
            log_file_of(tmp_path, head).write_bytes(other)
            with pytest.raises(StateCorrupt) as caught:
                await replay(it)
            assert record.tokens_digest.hex() in caught.value.message
            assert tokens_digest.hex() in caught.value.message
            assert await it.storage.read_head(KEY) == head
            await run(it.sessions, asked("three"))

    in_loop(test)


def test_a_session_whose_log_is_lost_goes_on_without_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with house(local_store(tmp_path), LOGGING) as it:
            await run(it.sessions, asked("one"))
            log_file_of(tmp_path, await head_of(it)).unlink()
            with pytest.raises(LogLost):
                await replay(it)
            await fork(it)
            assert (await head_of(it, OTHER)).log_id is None
            await run(it.sessions, asked("two"))
            assert (await head_of(it)).log_id is None
            assert "it goes on without one" in caplog.text
            await rewind(it, 1)
            with pytest.raises(InvalidRequest, match="no token log"):
                await replay(it)

    in_loop(test)


def test_a_replayed_document_that_is_open_is_still_open() -> None:
    async def test() -> None:
        async with house(config=LOGGING) as it:
            await break_off_a_document(it)
            mark = (await head_of(it)).open_ingest
            assert mark is not None
            await replay(it)
            with pytest.raises(IngestOpen):
                await run(it.sessions, asked("one"))
            raw: Any = in_pieces(text_of(20)[mark.offset :], 100)
            await ingest(it.sessions, raw, document_id=mark.document_id, offset=mark.offset)
            await ingest(it.sessions, in_pieces(text_of(20), 100), session=OTHER)
            digests = [(await it.storage.load_stored(key)).tokens_digest for key in (KEY, OTHER)]
            assert digests[0] == digests[1]

    in_loop(test)

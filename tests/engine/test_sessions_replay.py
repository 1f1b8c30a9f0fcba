"""A session made anew from its token log is the session that it was."""

import asyncio
import random
import re
from array import array
from collections.abc import Awaitable, Callable
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
    History,
    Message,
    ReplayProgress,
    ReplayRequest,
    ReplayResult,
    RequestIdentity,
    SessionConfig,
)
from engine.snapshot import SessionRecord
from engine.stores.base import Head, SessionKey
from engine.stores.local import LocalStore
from engine.stores.memory import MemoryStore
from engine.token_log import encode_record, read_history
from engine.tokens_digest import INITIAL_DIGEST, extend_digest
from tests.engine.harness import assert_same_session, tiny
from tests.engine.sessions_harness import (
    GREEDY,
    KEY,
    House,
    asked,
    create,
    house,
    in_loop,
    in_pieces,
    ingest,
    run,
    text_of,
)
from tests.engine.test_sessions_versions import OTHER, break_off_a_document, exported, fork, imported, rewind
from tests.tiny import tiny_checkpoint

LOGGING = SessionConfig(lease_seconds=1.0, commit_num_tokens=64, token_log=True)
LONG = replace(GREEDY, max_tokens=30, ignore_eos=True)


async def replay(
    it: House, key: SessionKey = KEY, if_match: int | None = None, identity: RequestIdentity | None = None
) -> tuple[list[ReplayProgress], ReplayResult]:
    progress: list[ReplayProgress] = []
    request = ReplayRequest(key, if_match, identity or RequestIdentity())
    async with it.sessions.replay(request) as steps, aclosing(steps):
        async for step in steps:
            if isinstance(step, ReplayResult):
                return progress, step
            progress.append(step)
    raise AssertionError("the replay ended without a result")


async def head_of(it: House, key: SessionKey = KEY) -> Head:
    head = await it.storage.read_head(key)
    assert head is not None
    return head


async def log_of(it: House, key: SessionKey = KEY) -> bytes:
    head = await head_of(it, key)
    assert head.log_id is not None
    assert head.log_num_bytes is not None
    return bytes(await it.storage.load_log(key, head.log_id, head.log_num_bytes))


async def record_of(it: House, key: SessionKey = KEY) -> SessionRecord:
    _, record = await it.storage.load(key)
    assert record is not None
    return record


async def some_turns(it: House) -> None:
    system = Message("system", "Answer with a number.")
    for text in ("one", "two"):
        await run(it.sessions, asked(text, messages=(system, Message("user", text))))
    await run(it.sessions, asked("three", messages=(Message("system", "Or not."), Message("user", "three"))))


async def stop_strings(it: House) -> None:
    """Each over several tokens, some of which have been fed when it is found."""
    stops: set[str] = set()
    for text in ("one", "two", "three"):
        await fork(it) if stops else await create(it.sessions, {}, OTHER)
        said, _ = await run(it.sessions, asked(text, session=OTHER, sampling=LONG))
        await it.sessions.delete(OTHER)
        stop = max(re.findall("[ -~]+", said), key=len)[:6]
        again, _ = await run(it.sessions, asked(text, sampling=replace(LONG, stop=(stop,))))
        assert again == said[: said.index(stop)]
        assert len(tiny().tokenizer.encode(stop)) > 2
        stops.add(stop)
    assert len(stops) > 1


async def a_transcript_of_more_messages_than_the_ledger_holds(it: House) -> None:
    texts = [str(number % 10) for number in range(1101)]
    await run(it.sessions, asked(*texts))
    await run(it.sessions, asked("more"))


async def resumed_documents(it: House) -> None:
    await break_off_a_document(it)
    mark = (await head_of(it)).open_ingest
    assert mark is not None
    raw = text_of(20)[mark.offset :]
    await ingest(it.sessions, in_pieces(raw, 100), document_id=mark.document_id, offset=mark.offset)
    await run(it.sessions, asked("one"))
    await ingest(it.sessions, in_pieces(text_of(30, seed=5), 99), document_id="another")


async def an_open_document(it: House) -> None:
    await run(it.sessions, asked("one"))
    await break_off_a_document(it)


async def rewinds(it: House) -> None:
    for text in ("one", "two", "three"):
        await run(it.sessions, asked(text))
    await rewind(it, 1)
    await run(it.sessions, asked("four"))
    await rewind(it, 3)
    await run(it.sessions, asked("five"))
    await rewind(it, 5)


async def a_rewind_to_the_beginning(it: House) -> None:
    await create(it.sessions, {"book": "Emma"})
    await run(it.sessions, asked("one"))
    await rewind(it, 0)
    await run(it.sessions, asked("two"))


async def a_regenerated_answer(it: House) -> None:
    first, _ = await run(it.sessions, asked("one"))
    await run(it.sessions, asked("two"))
    _, turn = await run(it.sessions, asked("one", first, "two, please", may_rewind=True))
    session = turn.session()
    assert session is not None
    assert session.rewound_to == 1


async def one_of_several_choices(it: House) -> None:
    await run(it.sessions, asked("one", num_choices=3))
    await run(it.sessions, asked("two", num_choices=2, sampling=LONG))


async def a_replay(it: House) -> None:
    await run(it.sessions, asked("one"))
    await replay(it)
    await run(it.sessions, asked("two"))
    await rewind(it, 2)
    await run(it.sessions, asked("three"))


def drawn(seed: int) -> Callable[[House], Awaitable[None]]:
    """Twelve operations on one session."""

    async def history(it: House) -> None:
        rng = random.Random(seed)
        await run(it.sessions, asked("first"))
        for number in range(12):
            head = await head_of(it)
            operation = rng.choice(["turn", "read", "document", "broken document", "rewind", "replay"])
            if operation == "rewind":
                await rewind(it, rng.choice(head.generations).version)
            elif operation == "replay":
                await replay(it)
            elif head.open_ingest is not None:
                raw = text_of(20)[head.open_ingest.offset :]
                mark = head.open_ingest
                await ingest(it.sessions, in_pieces(raw, 70), document_id=mark.document_id, offset=mark.offset)
            elif operation == "broken document":
                await break_off_a_document(it)
            elif operation == "document":
                await ingest(it.sessions, in_pieces(text_of(rng.randint(1, 9), number), 70))
            else:
                question = asked(f"turn {number}", history=History.NEW, sampling=replace(LONG, max_tokens=number + 1))
                await run(it.sessions, replace(question, read_only=operation == "read"))

    return history


@pytest.mark.parametrize(
    "history",
    [
        *(pytest.param(drawn(seed), id=f"drawn {seed}") for seed in range(3)),
        some_turns,
        stop_strings,
        a_transcript_of_more_messages_than_the_ledger_holds,
        resumed_documents,
        an_open_document,
        rewinds,
        a_rewind_to_the_beginning,
        a_regenerated_answer,
        one_of_several_choices,
        a_replay,
    ],
)
def test_a_replay_leads_to_the_session_that_it_was(history: Callable[[House], Awaitable[None]]) -> None:
    async def test() -> None:
        async with house(config=LOGGING) as it:
            await history(it)
            before, log = await record_of(it), await log_of(it)
            head = await head_of(it)
            stored = await it.storage.load_stored(KEY)
            await fork(it, key=SessionKey(KEY.tenant, "kept"))
            progress, result = await replay(it)

            after = await record_of(it)
            assert_same_session(after.state, before.state, 1e-9)
            assert replace(after, state=before.state) == before
            again = await head_of(it)
            assert (again.version, again.position) == (head.version + 1, head.position)
            assert (again.open_ingest, again.metadata, again.created) == (head.open_ingest, head.metadata, head.created)
            assert await log_of(it) == log
            stored_again = await it.storage.load_stored(KEY)
            assert stored_again.turns[:-1] == stored.turns[-7:]
            assert stored_again.documents == stored.documents
            assert stored_again.tokens_digest == stored.tokens_digest

            assert result.num_tokens == result.session.position == head.position
            fed = [step.num_tokens for step in progress]
            assert fed == [*range(64, head.position, 64), head.position]
            assert {step.num_total_tokens for step in progress} == {head.position}

            if before.open_ingest is None:
                kept = SessionKey(KEY.tenant, "kept")
                question = asked("and then?", history=History.NEW, sampling=LONG)
                assert (await run(it.sessions, question))[0] == (
                    await run(it.sessions, replace(question, session=kept))
                )[0]
                assert_same_session((await record_of(it)).state, (await record_of(it, kept)).state, 1e-9)

    in_loop(test)


def test_a_session_that_has_read_nothing_is_replayed_to_nothing() -> None:
    async def test() -> None:
        async with house(config=LOGGING) as it:
            await create(it.sessions, {})
            assert (await head_of(it)).log_num_bytes == 0
            _, result = await replay(it)
            assert (result.num_tokens, result.session.version) == (0, 1)
            _, record = await it.storage.load(KEY)
            assert record is None
            await run(it.sessions, asked("one"))
            await rewind(it, 0)
            _, result = await replay(it)
            assert (result.num_tokens, result.session.version) == (0, 4)

    in_loop(test)


def test_a_read_only_turn_leaves_nothing_in_the_log() -> None:
    async def test() -> None:
        async with house(config=LOGGING) as it:
            await run(it.sessions, asked("one"))
            log = await log_of(it)
            await run(it.sessions, asked("two", read_only=True))
            assert await log_of(it) == log

    in_loop(test)


def test_a_fork_has_the_log_of_its_version_and_goes_its_own_way() -> None:
    async def test() -> None:
        async with house(config=LOGGING) as it:
            await run(it.sessions, asked("one"))
            first = await log_of(it)
            await run(it.sessions, asked("two"))
            await fork(it, 1)
            assert await log_of(it, OTHER) == first
            await run(it.sessions, asked("three", session=OTHER))
            before = (await record_of(it, OTHER)).state
            await it.sessions.delete(KEY)
            await replay(it, OTHER)
            assert_same_session((await record_of(it, OTHER)).state, before)

    in_loop(test)


def test_a_log_begins_with_its_session_or_never_and_goes_on_without_the_setting() -> None:
    async def test() -> None:
        store = MemoryStore()
        async with house(store) as it:
            await run(it.sessions, asked("one", session=OTHER))
        async with house(store, LOGGING) as it:
            await run(it.sessions, asked("two", session=OTHER))
            await run(it.sessions, asked("one"))
            third = SessionKey(KEY.tenant, "third")
            await imported(it, [await exported(it)], third)
            await fork(it, source=third, key=SessionKey(KEY.tenant, "of third"[:2]))
            for key in (OTHER, third, SessionKey(KEY.tenant, "of")):
                assert (await head_of(it, key)).log_num_bytes is None
                with pytest.raises(InvalidRequest, match="no token log"):
                    await replay(it, key)
        async with house(store) as it:
            await run(it.sessions, asked("two"))
            before = (await record_of(it)).state
            await replay(it)
            assert_same_session((await record_of(it)).state, before)

    in_loop(test)


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
            assert again == first
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

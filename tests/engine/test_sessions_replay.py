"""A session made anew from its token log is the session that it was."""

import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from engine.errors import (
    InvalidRequest,
)
from engine.sessions import (
    History,
    Message,
)
from engine.stores.base import SessionKey
from engine.stores.memory import MemoryStore
from tests.engine.harness import assert_same_session, tiny
from tests.engine.replay_harness import LOGGING, head_of, log_of, record_of, replay
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
from tests.engine.versions_harness import OTHER, break_off_a_document, exported, fork, imported, rewind

LONG = replace(GREEDY, max_tokens=30, ignore_eos=True)


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

"""The n-th call to the store fails, for every n until the operation passes untouched: before it was applied or after,
once or until somebody mends it. Whatever n, a reader finds a generation that the operation commits, or the one from
before it, whole; and the same request again ends in the state of a run that nothing happened to."""

import itertools
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass

import pytest

from engine.errors import SessionNotFound, StoreUnavailable
from engine.sampling.sampling_params import SamplingParams
from engine.sessions import (
    Branch,
    LearnRequest,
    Message,
    ReplayRequest,
    ReplayResult,
    RequestIdentity,
    SessionConfig,
    Turn,
)
from engine.sessions.stored_turns import StoredTurns
from engine.snapshots.token_log import read_history
from engine.snapshots.tokens_digest import INITIAL_DIGEST
from engine.stores.base import Head, NewGeneration, SessionKey, Store
from tests.engine.sessions_harness import House, asked, house, in_loop, in_pieces, ingest, run, text_of
from tests.faults.wrapped_store import FailingStore, WrappedStore

DOCUMENT = text_of(6)
SHORT = SamplingParams(temperature=0, max_tokens=2)
CONFIG = SessionConfig(lease_seconds=0.1, commit_num_tokens=64, token_log=True)
IDENTITY = RequestIdentity("what is asked for", "k")

# Version, position, tokens_digest and the names of its generations; None for no session.
Seen = tuple[int, int, str, tuple[str, ...]] | None


def seen(head: Head, tokens_digest: str) -> Seen:
    names = (generation.name for generation in head.generations)
    return head.version, head.position, tokens_digest, tuple(name for name in names if name is not None)


class RecordingStore(WrappedStore):
    """Remembers what was committed."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.committed: set[Seen] = set()

    def commit(self, key: SessionKey, base: Head | None, new: NewGeneration) -> Head:
        head = super().commit(key, base, new)
        self.committed.add(seen(head, StoredTurns.decode(bytes(new.extra)).tokens_digest))
        return head


async def take_turn(it: House, key: SessionKey, branch: Branch | None = None) -> None:
    """Or get its stored answer."""
    request = asked("and two", session=key, branch=branch, idempotency_key="k", sampling=SHORT)
    async with it.sessions.turn(request) as turn:
        if isinstance(turn, Turn):
            async for _ in turn.outputs():
                pass
            await turn.commit({"text": turn.text})


async def branch_off(it: House, key: SessionKey) -> None:
    await take_turn(it, key, Branch(1, copy_of(key)))


async def learn(it: House, key: SessionKey) -> None:
    await it.sessions.learn(LearnRequest(key, (Message("user", "and this"),), identity=IDENTITY))


async def ask_read_only(it: House, key: SessionKey) -> None:
    await run(it.sessions, asked("a question", session=key, read_only=True, sampling=SHORT))


async def read_document(it: House, key: SessionKey) -> None:
    """Goes on where the last commit ended, as a client does."""
    head = await it.storage.read_head(key)
    offset = head.open_ingest.offset if head is not None and head.open_ingest is not None else 0
    await ingest(it.sessions, in_pieces(DOCUMENT[offset:], 100), session=key, document_id="book", offset=offset)


async def create(it: House, key: SessionKey) -> None:
    with it.sessions.versions() as versions:
        await versions.create(key, {"name": "value"}, None, IDENTITY)


async def fork(it: House, key: SessionKey) -> None:
    with it.sessions.versions() as versions:
        await versions.fork(key, None, copy_of(key), None, None, IDENTITY)


async def carry(it: House, key: SessionKey) -> None:
    """Export and import."""
    with it.sessions.versions() as versions:
        _, _, parts = await versions.export(key, None)
        await versions.import_snapshot(copy_of(key), parts, None, IDENTITY)


async def rewind(it: House, key: SessionKey) -> None:
    await it.sessions.rewind(key, 1, None, IDENTITY)


async def replay(it: House, key: SessionKey) -> None:
    async with it.sessions.replay(ReplayRequest(key, None, IDENTITY)) as steps, aclosing(steps):
        assert [type(step) async for step in steps][-1] is ReplayResult


async def name(it: House, key: SessionKey) -> None:
    with it.sessions.versions() as versions:
        await versions.name(key, 1, "beginning")


async def delete(it: House, key: SessionKey) -> None:
    with suppress(SessionNotFound):
        await it.sessions.delete(key)


def copy_of(key: SessionKey) -> SessionKey:
    return SessionKey(key.tenant, f"{key.session_id}-copy")


@dataclass(frozen=True)
class Case:
    """num_calls: that the operation makes at least; a renewal of its lease is one more.   num_turns: before it."""

    operation: Callable[[House, SessionKey], Awaitable[None]]
    num_calls: int
    num_turns: int = 1

    async def begin(self, calm: House, session_id: str) -> SessionKey:
        key = SessionKey("tenant", session_id)
        for number in range(self.num_turns):
            await run(calm.sessions, asked(f"turn {number}", session=key, sampling=SHORT))
        return key


CASES = {
    "create": Case(create, 1, num_turns=0),
    "first turn": Case(take_turn, 4, num_turns=0),
    "turn": Case(take_turn, 6),
    "branch": Case(branch_off, 8, num_turns=2),
    "items": Case(learn, 5),
    "read-only turn": Case(ask_read_only, 2),
    "document": Case(read_document, 8),
    "fork": Case(fork, 4),
    "export and import": Case(carry, 3),
    "rewind": Case(rewind, 6, num_turns=2),
    "replay": Case(replay, 6, num_turns=2),
    "name": Case(name, 2, num_turns=2),
    "delete": Case(delete, 3),
}


async def look(it: House, key: SessionKey) -> Seen:
    """Reads the whole generation: what is torn raises here."""
    if await it.storage.read_head(key) is None:
        return None
    head, record = await it.storage.load(key)
    stored = await it.storage.load_stored(key)
    if record is not None:
        assert (record.state.position, record.state.tokens_digest.hex()) == (head.position, stored.tokens_digest)
    if head.log_id is not None and head.log_num_bytes is not None:
        history = read_history(await it.storage.load_log(key, head.log_id, head.log_num_bytes))
        assert (history[-1].tokens_digest.hex() if history else INITIAL_DIGEST.hex()) == stored.tokens_digest
    return seen(head, stored.tokens_digest)


async def look_at_both(it: House, key: SessionKey) -> tuple[Seen, Seen]:
    """The session, and what was made from it."""
    return await look(it, key), await look(it, copy_of(key))


@pytest.mark.parametrize(
    "store_url", ["memory", "local", pytest.param("redis", marks=pytest.mark.redis)], indirect=True
)
@pytest.mark.parametrize("is_applied", [False, True], ids=["before it is applied", "after it is applied"])
@pytest.mark.parametrize("is_lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_whichever_call_to_the_store_fails_one_whole_generation_is_seen_and_a_retry_ends_as_in_peace(
    store: Store, case: Case, is_lasting: bool, is_applied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.sessions.storage.COMMIT_RETRY_SECONDS", (0.0, 0.0))

    async def test() -> None:
        recording, failing = RecordingStore(store), FailingStore(store)
        async with house(recording, CONFIG) as calm, house(failing, CONFIG) as it:
            key = await case.begin(calm, "in-peace")
            before = await look_at_both(calm, key)
            await case.operation(calm, key)
            expected = await look_at_both(calm, key)
            possible = {before, expected, *((committed, None) for committed in recording.committed)}
            for n in itertools.count(1):
                key = await case.begin(calm, f"s-{n}")
                failing.fail(n, is_lasting=is_lasting, is_applied=is_applied)
                try:
                    await case.operation(it, key)
                except StoreUnavailable:
                    assert await look_at_both(calm, key) in possible, n
                else:
                    assert await look_at_both(calm, key) == expected, n
                was_untouched = failing.num_failed == 0
                failing.heal()
                for _ in range(2):
                    await case.operation(it, key)
                    assert await look_at_both(calm, key) == expected, n
                if was_untouched:
                    break
            assert n > case.num_calls

    in_loop(test)

"""One server's worth of sessions, in this process, that can be killed: what its store hears of it then is nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict
from typing import Any, Self, cast

from engine.errors import AtlasError, SessionNotFound, StoreUnavailable
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import SequenceState
from engine.sessions import IngestRequest, IngestResult, RequestIdentity, SessionConfig, StoredTurn, TurnRequest
from engine.stores.base import Head, SessionKey, Store
from tests.engine.sessions_harness import House, house
from tests.faults.state_machine.model import COMMIT_NUM_TOKENS
from tests.faults.state_machine.operations import (
    BROKEN_OFF,
    Carry,
    Create,
    Delete,
    Fork,
    Ingest,
    Name,
    Operation,
    Outcome,
    Refused,
    Retriable,
    Rewind,
    Seen,
    Turn,
    Unname,
    View,
    request_digest,
)

TENANT = "default"
LEASE_SECONDS = 0.1


class MortalStore:
    """A store as one replica sees it.

    is_dead: nothing reaches the store any more.   dies_at_failure: dead from the first call on that the store fails.
    is_alone: every lease is given, as to a writer whose rival's has run out.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.is_dead = False
        self.dies_at_failure = False
        self.is_alone = False

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        return self._guarded(value) if callable(value) else value

    def acquire_lease(self, key: SessionKey, owner: str, seconds: float) -> bool:
        return self.is_alone or bool(self._guarded(self._store.acquire_lease)(key, owner, seconds))

    def close(self) -> None:
        """The store belongs to whoever opened it."""

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if self.is_dead:
                raise StoreUnavailable("the replica is dead")
            try:
                return method(*arguments, **named)
            except StoreUnavailable:
                self.is_dead = self.dies_at_failure
                raise

        return call


class Replica:
    """Made by `start`; every operation answers with what a client would be told."""

    def __init__(self, its: House, store: MortalStore, opened: AsyncExitStack) -> None:
        self._house = its
        self._opened = opened
        self.store = store

    @classmethod
    async def start(cls, store: Store) -> Self:
        mortal = MortalStore(store)
        config = SessionConfig(lease_seconds=LEASE_SECONDS, commit_num_tokens=COMMIT_NUM_TOKENS)
        async with AsyncExitStack() as stack:
            its = await stack.enter_async_context(house(cast(Store, mortal), config))
            return cls(its, mortal, stack.pop_all())
        raise AssertionError("unreachable")

    async def kill(self) -> None:
        """Its leases stay and run out."""
        self.store.is_dead = True
        await self._opened.aclose()

    async def perform(self, operation: Operation, meanwhile: Callable[[], Awaitable[None]] | None = None) -> Outcome:
        """`meanwhile` is awaited between a turn's answer and its commit."""
        try:
            match operation:
                case Turn():
                    return await self._turn(operation, meanwhile)
                case Ingest():
                    return await self._ingest(operation)
                case Rewind():
                    session = await self._house.sessions.rewind(
                        _key(operation.session), operation.version, operation.if_match, _identity(operation)
                    )
                    return Seen(session.version, session.position, rewound_to=session.rewound_to)
                case Delete():
                    await self._house.sessions.delete(_key(operation.session))
                    return Seen(0, 0)
                case _:
                    return await self._change_versions(operation)
        except ConnectionResetError:
            return BROKEN_OFF
        except AtlasError as error:
            return Refused(error.code)

    async def _turn(self, turn: Turn, meanwhile: Callable[[], Awaitable[None]] | None) -> Outcome:
        request = TurnRequest(
            messages=turn.messages,
            sampling=SamplingParams(temperature=0, max_tokens=turn.max_tokens),
            digest=request_digest(turn),
            session=_key(turn.session),
            history=turn.history,
            may_rewind=turn.may_rewind,
            read_only=turn.read_only,
            if_match=turn.if_match,
            idempotency_key=turn.key,
            is_retry=turn.is_retry,
        )
        async with self._house.sessions.turn(request) as running:
            if isinstance(running, StoredTurn):
                return Seen(**{**running.response, "progress": (), "is_replay": True})
            async with aclosing(running.outputs()) as outputs:
                async for _ in outputs:
                    pass
            if meanwhile is not None:
                await meanwhile()
            session = running.session()
            assert session is not None
            seen = Seen(session.version, session.position, running.text, session.rewound_to)
            await running.commit(asdict(seen))
            return seen

    async def view(self, session_id: str) -> View | None:
        """None when there is no such session."""
        try:
            head, tokens_digest = await self._house.sessions.describe(_key(session_id))
        except SessionNotFound:
            return None
        mark = head.open_ingest
        return View(
            tokens_digest=tokens_digest,
            open_document=None if mark is None else (mark.document_id, mark.offset),
            ttl_seconds=head.ttl_seconds,
            versions=tuple((kept.version, kept.name, kept.position) for kept in head.generations),
        )

    async def states(self, session_id: str) -> tuple[SequenceState | None, list[SequenceState | None]]:
        """The committed state as a turn would start from it, and every kept one as the store has it, newest first."""
        head, committed = await self._house.committed(_key(session_id))
        stored = []
        for kept in head.generations:
            _, record = await self._house.storage.load(_key(session_id), kept.version)
            stored.append(None if record is None else record.state)
        return committed, stored

    async def heads(self) -> dict[SessionKey, Head]:
        """Of all sessions that are listed, in the order of the list."""
        listed = await self._house.sessions.list_sessions(TENANT, 100, None)
        return {_key(session_id): head for session_id, head in listed}

    async def _ingest(self, ingest: Ingest) -> Outcome:
        request = IngestRequest(_key(ingest.session), ingest.document_id, ingest.offset, ingest.key, ingest.if_match)
        progress: list[tuple[int, int]] = []
        async with self._house.sessions.ingest(request, _sent(ingest)) as steps, aclosing(steps):
            async for step in steps:
                if isinstance(step, IngestResult):
                    session = step.session
                    return Seen(
                        version=session.version,
                        position=session.position,
                        num_bytes=step.num_bytes,
                        num_tokens=step.num_tokens,
                        progress=tuple(progress),
                    )
                progress.append((step.num_bytes, step.version))
        raise AssertionError("the document ended without a result")

    async def _change_versions(self, operation: Create | Fork | Carry | Name | Unname) -> Seen:
        key = _key(operation.session)
        with self._house.sessions.versions() as versions:
            match operation:
                case Create():
                    head = await versions.create(key, {}, operation.ttl_seconds, _identity(operation))
                case Fork():
                    source = _key(operation.source)
                    head = await versions.fork(source, operation.version, key, None, None, _identity(operation))
                case Carry():
                    _, _, parts = await versions.export(_key(operation.source), operation.version)
                    head = await versions.import_snapshot(key, parts, None, RequestIdentity())
                case Name():
                    head = await versions.name(key, operation.version, operation.name)
                case Unname():
                    head = await versions.unname(key, operation.name)
        return Seen(head.version, head.position)


async def _sent(ingest: Ingest) -> AsyncIterator[bytes]:
    for piece in ingest.pieces:
        yield piece
        await asyncio.sleep(0)
    if ingest.breaks_after is not None:
        raise ConnectionResetError


def _key(session_id: str) -> SessionKey:
    return SessionKey(TENANT, session_id)


def _identity(operation: Retriable) -> RequestIdentity:
    return RequestIdentity(request_digest(operation), operation.key, operation.is_retry)

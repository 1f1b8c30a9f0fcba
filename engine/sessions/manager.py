"""The door to sessions: who may do what to which session, and when.

One writer at a time, any number of readers; a turn or a document is opened here with its lease held, its session loaded
and its history matched, and whatever happens inside, the lease is given back and nothing uncommitted remains.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

from atlas_model.text import ChatFormat, Tokenizer
from atlas_model.text.chat_format import OPENING
from engine.checking import check_together
from engine.engine import Engine
from engine.errors import (
    CommitConflict,
    Draining,
    IngestOpen,
    SessionDiverged,
    SessionExists,
    SessionNotFound,
    VersionConflict,
)
from engine.sequence import Sequence, SequenceState
from engine.sessions.branching import turn_or_branch
from engine.sessions.committed import CommittedSessions
from engine.sessions.host_copies import LoadedSession
from engine.sessions.ingest import Ingest, IngestProgress, IngestRequest, IngestResult
from engine.sessions.learning import Learned, LearnRequest, learn_messages
from engine.sessions.leases import Leases
from engine.sessions.ledger import Reading, read_messages
from engine.sessions.observer import SessionObserver
from engine.sessions.prompts import chat_token_ids, opened_token_ids, raw_token_ids
from engine.sessions.replay import Replay, ReplayProgress, ReplayRequest, ReplayResult
from engine.sessions.shielding import finish_even_if_cancelled
from engine.sessions.state_budget import StateBudget
from engine.sessions.storage import Storage
from engine.sessions.stored_turns import RequestIdentity, StoredTurn
from engine.sessions.token_logs import TokenLogs
from engine.sessions.turn import CommittedSession, Since, Turn, TurnRequest, new_sequence_id
from engine.sessions.undoing import undo_turn
from engine.sessions.versions import Versions
from engine.snapshots.snapshot import SessionRecord
from engine.stores.base import Head, SessionKey


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """commit_num_tokens: an ingest commits about so often.
    max_host_num_bytes: of committed sessions kept in memory.
    max_inflight_num_bytes: of states that are on their way (`StateBudget`); None is a gibibyte, or four states for each
        slot where that is more: as many turns as run, and as many again that load and commit.
    token_log: whether sessions that begin have a token log."""

    lease_seconds: float = 10.0
    commit_num_tokens: int = 8192
    max_host_num_bytes: int = 2**30
    max_inflight_num_bytes: int | None = None
    token_log: bool = False


class SessionManager:
    """Lives on the event loop that `engine` was started on."""

    def __init__(
        self,
        engine: Engine,
        storage: Storage,
        tokenizer: Tokenizer,
        chat_format: ChatFormat,
        config: SessionConfig,
        observer: SessionObserver,
    ) -> None:
        self._engine = engine
        self._storage = storage
        self._tokenizer = tokenizer
        self._chat_format = chat_format
        self._config = config
        self._token_logs = TokenLogs(config.token_log, tokenizer)
        self._committed = CommittedSessions(storage, config.max_host_num_bytes, observer, self._token_logs)
        max_num_bytes = config.max_inflight_num_bytes
        if max_num_bytes is None:
            max_num_bytes = max(2**30, 4 * engine.config.max_num_sequences * storage.state_num_bytes)
        self.budget = StateBudget(storage.state_num_bytes, max_num_bytes, engine.config.max_num_waiting)
        max_norm = engine.config.max_state_norm
        self._versions = Versions(storage, self._committed, self._token_logs, self.budget, max_norm)
        self._leases = Leases(storage, config.lease_seconds)
        self._is_draining = False
        self._num_open = 0
        self._all_closed = asyncio.Event()
        self._all_closed.set()

    @property
    def num_host_copies(self) -> int:
        return self._committed.num_host_copies

    @contextmanager
    def versions(self) -> Iterator[Versions]:
        """What may be done to versions without writing to a session that exists. Raises Draining."""
        with self._open():
            yield self._versions

    def transfer(self, tenant: str) -> AbstractAsyncContextManager[None]:
        """See Versions.transfer."""
        return self._versions.transfer(tenant)

    async def rewind(
        self, key: SessionKey, version: int | str, if_match: int | None, identity: RequestIdentity
    ) -> CommittedSession:
        """See Versions.rewind. Raises SessionBusy and Draining too."""
        with self._open():
            async with self._leases.hold(key):
                return await self._versions.rewind(key, version, if_match, identity)

    async def describe(self, key: SessionKey) -> tuple[Head, str]:
        """The head, and the tokens_digest in hex. Raises SessionNotFound."""
        head = await self._storage.read_head(key)
        while head is not None:
            try:
                stored = await self._storage.load_stored(key)
            except SessionNotFound:
                break
            # Another generation may have been committed between the two reads.
            again = await self._storage.read_head(key)
            if again is not None and again.generation == head.generation:
                return head, stored.tokens_digest
            head = again
        raise SessionNotFound("there is no session with this id")

    @asynccontextmanager
    async def committed_state(self, key: SessionKey) -> AsyncIterator[tuple[Head, SequenceState | None]]:
        """The head and what the session has learned; None for one that has read nothing.

        Raises SessionNotFound and QueueFull.
        """
        async with self.budget.hold(1, transfer_of=key.tenant):
            loaded = await self._committed.find(key)
            if loaded is None:
                raise SessionNotFound("there is no session with this id")
            yield loaded.head, None if loaded.record is None else loaded.record.state

    async def list_sessions(self, tenant: str, limit: int, after: str | None) -> list[tuple[str, Head]]:
        return await self._storage.list_sessions(tenant, limit, after)

    async def delete(self, key: SessionKey) -> None:
        """Raises SessionNotFound, SessionBusy."""
        with self._open():
            async with self._leases.hold(key, makes_room=True):
                if not await finish_even_if_cancelled(self._committed.delete(key)):
                    raise SessionNotFound("there is no session with this id")

    async def undo(self, key: SessionKey, version: int, *, may_delete: bool) -> None:
        """See undo_turn. Raises SessionBusy, QueueFull and Draining too."""
        with self._open():
            async with self._leases.hold(key), self._versions.transfer(key.tenant):
                await undo_turn(self._storage, self._committed, key, version, may_delete=may_delete)

    def turn(self, request: TurnRequest) -> AbstractAsyncContextManager[Turn | StoredTurn]:
        """A turn that is ready to run, or the stored one that `request` repeats.

        Raises SessionBusy, SessionNotFound (read-only, or it may not begin), SessionExists (it must be new),
        VersionNotFound (of the one to begin from), VersionConflict, SessionDiverged, IngestOpen, IdempotencyMismatch,
        InvalidRequest, StoreFull, QueueFull, Draining, EngineDead, and what loading a session does.
        """
        if request.branch is None:
            return self._turn(request)
        return turn_or_branch(self._turn, self._storage, request, request.branch)

    async def learn(self, request: LearnRequest) -> Learned:
        """See learn_messages. Raises SessionBusy, QueueFull and Draining too."""
        with self._open():
            async with self._leases.hold(request.session), self._hold_for_feeding(request.session.tenant):
                return await learn_messages(request, self._committed, self._engine, self._tokenizer, self._chat_format)

    @asynccontextmanager
    async def ingest(
        self, request: IngestRequest, pieces: AsyncIterator[bytes]
    ) -> AsyncIterator[AsyncGenerator[IngestProgress | IngestResult, None]]:
        """A document that is ready to be read: iterate to read it."""
        with self._open():
            async with self._leases.hold(request.session), self._hold_for_feeding(request.session.tenant):
                ingest = Ingest(
                    request,
                    self._committed,
                    self._engine,
                    self._tokenizer,
                    self._chat_format,
                    self._config.commit_num_tokens,
                )
                yield ingest.run(pieces)

    @asynccontextmanager
    async def replay(
        self, request: ReplayRequest
    ) -> AsyncIterator[AsyncGenerator[ReplayProgress | ReplayResult, None]]:
        """A session that is ready to be made anew from its token log: iterate to do it."""
        with self._open():
            async with self._leases.hold(request.session), self._hold_for_feeding(request.session.tenant):
                replay = Replay(
                    request,
                    self._storage,
                    self._committed,
                    self._token_logs,
                    self._engine,
                    self._config.commit_num_tokens,
                )
                yield replay.run()

    async def drain(self, seconds: float) -> None:
        """Refuses new work, gives what runs `seconds` to finish, and waits until every commit has ended."""
        self._is_draining = True
        await self._engine.drain(seconds)
        await self._all_closed.wait()

    @contextmanager
    def _open(self) -> Iterator[None]:
        if self._is_draining:
            raise Draining("the server is shutting down")
        self._num_open += 1
        self._all_closed.clear()
        try:
            yield
        finally:
            self._num_open -= 1
            if self._num_open == 0:
                self._all_closed.set()

    @asynccontextmanager
    async def _turn(self, request: TurnRequest) -> AsyncIterator[Turn | StoredTurn]:
        with self._open(), self._engine.places(request.tenant, request.num_answers):
            async with AsyncExitStack() as stack:
                base: LoadedSession | None = None
                if request.session is not None and request.writes:
                    await stack.enter_async_context(self._leases.hold(request.session))
                # After the lease, which others may have to give back first.
                await stack.enter_async_context(self.budget.hold(self._num_states(request)))
                if request.session is not None and request.writes:
                    base = await self._committed.find_with_answers(request.session)
                    if base is not None and (repeated := _find_repeated(request, base)) is not None:
                        await self._committed.confirm(request.session, base.head)
                        yield repeated
                        return
                    if base is not None and request.begins is not None:
                        raise SessionExists("a session with this id exists")
                elif request.session is not None:
                    base = await self._committed.find(request.session)
                if base is None and request.session is not None and not (request.writes and request.may_begin):
                    raise SessionNotFound("there is no session with this id")
                turn = await self._prepare(request, base)
                stack.callback(turn.close)
                yield turn

    def _num_states(self, request: TurnRequest) -> int:
        """That a turn has in memory at once: what it starts from, what it leaves, and what the choices of each prompt
        share. A departed history is looked for in two more at a time. Without a session nothing is left, and nothing
        loaded but what is known to begin with."""
        num_states = 0 if request.session is None and request.begins is None else 1
        if request.writes:
            num_states += self._storage.num_committed_states
        if request.session is not None and request.may_rewind:
            num_states += 2
        return num_states + (request.num_prompts if request.num_choices > 1 else 0)

    def _hold_for_feeding(self, tenant: str) -> AbstractAsyncContextManager[None]:
        """What a document or a replay goes on from, and what that leaves."""
        return self.budget.hold(1 + self._storage.num_committed_states, transfer_of=tenant)

    async def _prepare(self, request: TurnRequest, base: LoadedSession | None) -> Turn:
        version = 0 if base is None else base.head.version
        if request.if_match is not None and request.if_match != version:
            raise VersionConflict(f"the session is at version {version}", current=version)
        since: Since | None = None
        if base is None and request.begins is not None and request.begins.source is not None:
            generation, base, log = await self._versions.load_source(request.begins.source, request.begins.version)
            since = Since(generation, is_branch=True, log=log)
        record = None if base is None else base.record
        if request.writes and record is not None and record.open_ingest is not None:
            opened = record.open_ingest
            raise IngestOpen(f"document {opened.document_id} is open at offset {opened.offset}: finish it, or rewind")
        try:
            reading, prompts = await asyncio.to_thread(self._read, request, record)
        except SessionDiverged:
            if not request.may_rewind or request.session is None or base is None or since is not None:
                raise
            found = await self._versions.last_common(request.session, base.head, request.messages)
            if found is None:
                raise
            generation, older = found
            if request.writes and older.head.generation != base.head.generation:
                raise CommitConflict("another writer committed this session first") from None
            base, since, record = older, Since(generation), older.record
            reading, prompts = await asyncio.to_thread(self._read, request, record)
        if request.session is not None and request.writes:
            await self._committed.check_room(request.session, None if since and since.is_branch else base)
        state = record.state if record else None
        sequences = [
            Sequence(
                new_sequence_id(),
                token_ids,
                request.sampling,
                state,
                shares_state=not request.writes,
                leaves_state=request.writes,
                opening=OPENING.encode() if request.messages else b"",
                tenant=request.tenant,
            )
            for token_ids in prompts
        ]
        check_together(sequences, request.sampling, request.num_choices)
        return Turn(request, reading, sequences, base, self._engine, self._committed, since)

    def _read(self, request: TurnRequest, record: SessionRecord | None) -> tuple[Reading, list[list[int]]]:
        """What of the request is new, and the tokens of each prompt. Hashes and encodes everything: not for the event
        loop."""
        tokenizer, chat_format, is_first = self._tokenizer, self._chat_format, record is None
        ledger, system_digest = (record.ledger, record.system_digest) if record else ((), None)
        if request.prompts:
            raw = tuple(raw_token_ids(tokenizer, prompt) for prompt in request.prompts)
            prompts = [opened_token_ids(tokenizer, chat_format, each, is_first=is_first) for each in raw]
            # No entries of the ledger, as documents are none.
            return Reading((), (), system_digest, raw), prompts
        reading = read_messages(request.messages, ledger, system_digest, request.history)
        return reading, [chat_token_ids(tokenizer, chat_format, reading.messages, is_first=is_first)]


def _find_repeated(request: TurnRequest, base: LoadedSession) -> StoredTurn | None:
    if base.stored is None:
        return None
    return base.stored.find_turn(base.head.version, request.identity)

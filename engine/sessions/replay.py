"""A session's state made anew from its token log: when its snapshot is lost, or another model is served.

The session stays as it is until everything has been fed again; then one commit, which feeds nothing new and changes
nothing but the state, makes the result its next version. What breaks off before that leaves nothing behind.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.engine import Engine
from engine.errors import (
    CommitConflict,
    InvalidRequest,
    SessionNotFound,
    StateCorrupt,
    StateLost,
    VersionConflict,
)
from engine.sequence import Priority, Sequence, SequenceState
from engine.sessions.committed import CommittedSessions
from engine.sessions.shielding import finish_even_if_cancelled
from engine.sessions.storage import Storage
from engine.sessions.stored_turns import RequestIdentity, StoredTurns, stored_change
from engine.sessions.token_logs import LoggedSession, TokenLogs
from engine.sessions.turn import CommittedSession, new_sequence_id
from engine.stores.base import Head, SessionKey


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    session: SessionKey
    if_match: int | None = None
    identity: RequestIdentity = field(default_factory=RequestIdentity)


@dataclass(frozen=True, slots=True)
class ReplayProgress:
    """Tokens fed so far, of how many, and their rate. Nothing of it is committed."""

    num_tokens: int
    num_total_tokens: int
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """A session whose state is what its log leads to."""

    num_tokens: int
    seconds: float
    session: CommittedSession


class Replay:
    """`run` once, inside the session's lease."""

    def __init__(
        self,
        request: ReplayRequest,
        storage: Storage,
        committed: CommittedSessions,
        logs: TokenLogs,
        engine: Engine,
        piece_num_tokens: int,
    ) -> None:
        """piece_num_tokens: how many are fed between two words of progress."""
        self._request = request
        self._storage = storage
        self._committed = committed
        self._logs = logs
        self._engine = engine
        self._piece_num_tokens = piece_num_tokens
        self._started = time.monotonic()

    async def run(self) -> AsyncGenerator[ReplayProgress | ReplayResult, None]:
        """Progress after every piece, then the result.

        Raises SessionNotFound, VersionConflict, IdempotencyMismatch, InvalidRequest for a session without a log,
        LogLost, StateCorrupt, TokenizerMismatch, and what the engine and the store do.
        """
        request = self._request
        head = await self._head()
        stored = await self._stored()
        repeated = None if stored is None else stored.find_turn(head.version, request.identity)
        if repeated is not None:
            await self._committed.confirm(request.session, head)
            yield _result_of(repeated.response)
            return
        if request.if_match is not None and request.if_match != head.version:
            raise VersionConflict(f"the session is at version {head.version}", current=head.version)
        logged = await self._logged(head)
        if stored is None:
            stored = logged.stored.told_to(request.session.session_id)
        if stored.tokens_digest != logged.stored.tokens_digest:
            raise StateCorrupt(
                f"the token log leads to tokens_digest {logged.stored.tokens_digest}, the session has"
                f" {stored.tokens_digest}"
            )

        state: SequenceState | None = None
        result: ReplayResult | None = None
        token_ids = logged.token_ids
        try:
            for start in range(0, len(token_ids), self._piece_num_tokens):
                piece = token_ids[start : start + self._piece_num_tokens]
                sequence = Sequence(
                    new_sequence_id(),
                    piece,
                    state=state,
                    tenant=request.session.tenant,
                    priority=Priority.BACKGROUND,
                )
                state = (await self._engine.feed(sequence, has_begun=start > 0)).state
                await self._storage.touch(request.session, head)
                num_tokens = start + len(piece)
                yield ReplayProgress(num_tokens, len(token_ids), num_tokens / max(self._seconds, 1e-9))
            result = await self._commit(head, logged, state, stored)
        finally:
            if result is None and state is not None:
                self._engine.forget(state)
        yield result

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started

    async def _head(self) -> Head:
        head = await self._storage.read_head(self._request.session)
        if head is None:
            raise SessionNotFound("there is no session with this id")
        return head

    async def _stored(self) -> StoredTurns | None:
        """The committed answers; None where they are lost with the snapshot."""
        try:
            return await self._storage.load_stored(self._request.session)
        except (StateLost, StateCorrupt):
            return None

    async def _logged(self, head: Head) -> LoggedSession:
        if head.log_id is None or head.log_num_bytes is None:
            raise InvalidRequest("this session has no token log")
        log = await self._storage.load_log(self._request.session, head.log_id, head.log_num_bytes)
        return await asyncio.to_thread(self._logs.read, log)

    async def _commit(
        self, base: Head, logged: LoggedSession, state: SequenceState | None, stored: StoredTurns
    ) -> ReplayResult:
        # A replay takes long, and a version may have been named meanwhile: that is no other writer.
        head = await self._head()
        if head.generation != base.generation:
            raise CommitConflict("another writer committed this session first")
        session = CommittedSession(
            session_id=self._request.session.session_id,
            version=head.version + 1,
            committed=True,
            durability=self._committed.durability,
            position=0 if state is None else state.position,
        )
        result = ReplayResult(len(logged.token_ids), self._seconds, session)
        record = None
        if state is not None:
            assert state.tokens_digest.hex() == stored.tokens_digest, "the engine was fed other ids than it was given"
            record = logged.record(state)
        stored = stored.with_turn(stored_change(session.version, self._request.identity, asdict(result)))
        await finish_even_if_cancelled(self._committed.commit(self._request.session, head, record, stored, None))
        return result


def _result_of(response: Mapping[str, Any]) -> ReplayResult:
    return ReplayResult(**{**response, "session": CommittedSession(**response["session"])})

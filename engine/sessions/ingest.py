"""Reading a document into a session: a series of commits at segment borders (SESSIONS.md, 1.1).

What is committed stays, whatever breaks the upload; the session then says at which byte to go on, and a reader that
goes on there ends with the same tokens as one that was never interrupted. A document that was read to its end before
is compared and not learned again.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import asdict, dataclass, replace

from atlas_model.text import ChatFormat, Tokenizer
from engine.engine import Engine
from engine.errors import AtlasError, EmptyPrompt, IdempotencyMismatch, IngestOffset, IngestOpen, VersionConflict
from engine.sequence import Priority, Sequence
from engine.sessions.committed import CommittedSessions
from engine.sessions.document_reader import DocumentPosition, DocumentReader
from engine.sessions.host_copies import LoadedSession
from engine.sessions.shielding import finish_even_if_cancelled
from engine.sessions.stored_turns import StoredDocument, StoredTurns
from engine.sessions.token_logs import Fed
from engine.sessions.turn import CommittedSession, new_sequence_id
from engine.snapshots.snapshot import OpenIngest, SessionRecord
from engine.stores.base import SessionKey


@dataclass(frozen=True, slots=True)
class IngestRequest:
    """document_id: None is a document of its own.   offset: the document's byte that the first piece begins with."""

    session: SessionKey
    document_id: str | None = None
    offset: int = 0
    idempotency_key: str | None = None
    if_match: int | None = None


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """After a commit: bytes of the document, tokens fed by this call and their rate, and the session's new place."""

    num_bytes: int
    num_tokens: int
    tokens_per_second: float
    position: int
    version: int


@dataclass(frozen=True, slots=True)
class IngestResult:
    """A document that is in the memory to its end."""

    document_id: str
    num_bytes: int
    num_tokens: int
    seconds: float
    session: CommittedSession


class RepeatedIngest(IngestResult):
    """The result of an earlier call, of a document that was not read again."""


class Ingest:
    """One call's part of one document. `run` once, inside the session's lease."""

    def __init__(
        self,
        request: IngestRequest,
        committed: CommittedSessions,
        engine: Engine,
        tokenizer: Tokenizer,
        chat_format: ChatFormat,
        commit_num_tokens: int,
    ) -> None:
        self._request = request
        self._committed = committed
        self._engine = engine
        self._tokenizer = tokenizer
        self._chat_format = chat_format
        self._commit_num_tokens = commit_num_tokens
        self._started = time.monotonic()
        self._num_tokens = 0

    async def run(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[IngestProgress | IngestResult, None]:
        """Progress after every commit, then the result.

        Raises IngestOpen, IngestOffset, VersionConflict, IdempotencyMismatch, EmptyPrompt, InvalidUnicode, StoreFull
        and what the engine and the store do.
        """
        request = self._request
        base = await self._committed.find_with_answers(request.session)
        stored = base.stored if base is not None and base.stored is not None else StoredTurns()
        finished = stored.find_document(request.document_id, request.idempotency_key)
        if base is not None and finished is not None:
            result = await self._repeat(finished, pieces)
            await self._committed.confirm(request.session, base.head)
            yield result
            return
        version = 0 if base is None else base.head.version
        if request.if_match is not None and request.if_match != version:
            raise VersionConflict(f"the session is at version {version}", current=version)
        document_id, position, token_ids = self._begin(base)
        await self._committed.check_room(request.session, base)

        reader = DocumentReader(self._tokenizer, position)
        async for piece in pieces:
            await asyncio.to_thread(reader.push, piece)
            while reader.num_tokens >= self._commit_num_tokens:
                token_ids += reader.take(self._commit_num_tokens)
                base, stored = await self._commit(base, stored, token_ids, document_id, reader.position)
                token_ids = []
                yield self._progress(reader.position, base)
        await asyncio.to_thread(reader.finish)
        token_ids += reader.take(reader.num_tokens)
        if reader.position.offset == 0:
            raise EmptyPrompt("the document is empty")
        token_ids += self._chat_format.document_end(self._tokenizer)
        yield await self._finish(base, stored, token_ids, document_id, reader.position)

    def _begin(self, base: LoadedSession | None) -> tuple[str, DocumentPosition, list[int]]:
        """The document's id, where its reading stands, and what is fed before its first segment."""
        request = self._request
        record = None if base is None else base.record
        opened = None if record is None else record.open_ingest
        if opened is None:
            if request.offset != 0:
                raise IngestOffset("no document is open in this session: begin at offset 0", expected=0)
            start = [] if record is not None else self._chat_format.session_start(self._tokenizer)
            start += self._chat_format.document_start(self._tokenizer)
            return request.document_id or f"doc-{uuid.uuid4().hex}", DocumentPosition(), start
        if request.document_id not in (None, opened.document_id) or (
            request.document_id is None and not request.offset
        ):
            raise IngestOpen(f"document {opened.document_id} is open at offset {opened.offset}: finish it, or rewind")
        if request.offset != opened.offset:
            raise IngestOffset(f"the open document goes on at offset {opened.offset}", expected=opened.offset)
        return opened.document_id, DocumentPosition(opened.offset, opened.digest), []

    async def _commit(
        self,
        base: LoadedSession | None,
        stored: StoredTurns,
        token_ids: list[int],
        document_id: str,
        position: DocumentPosition,
    ) -> tuple[LoadedSession, StoredTurns]:
        mark = OpenIngest(document_id=document_id, offset=position.offset, digest=position.digest)
        record, fed = await self._feed(base, token_ids)
        stored = replace(stored, tokens_digest=record.state.tokens_digest.hex())
        return await self._keep(base, replace(record, open_ingest=mark), stored, fed), stored

    async def _finish(
        self,
        base: LoadedSession | None,
        stored: StoredTurns,
        token_ids: list[int],
        document_id: str,
        position: DocumentPosition,
    ) -> IngestResult:
        record, fed = await self._feed(base, token_ids)
        session = CommittedSession(
            session_id=self._request.session.session_id,
            version=1 if base is None else base.head.version + 1,
            committed=True,
            durability=self._committed.durability,
            position=record.state.position,
        )
        seconds = time.monotonic() - self._started
        result = IngestResult(document_id, position.offset, self._num_tokens, seconds, session)
        document = StoredDocument(
            document_id=document_id,
            key=self._request.idempotency_key,
            num_bytes=position.offset,
            content_digest=position.digest.hex(),
            response=asdict(result),
        )
        stored = replace(stored.with_document(document), tokens_digest=record.state.tokens_digest.hex())
        await self._keep(base, record, stored, replace(fed, document=document))
        return result

    async def _keep(
        self, base: LoadedSession | None, record: SessionRecord, stored: StoredTurns, fed: Fed
    ) -> LoadedSession:
        head = None if base is None else base.head
        commit = self._committed.commit(self._request.session, head, record, stored, fed)
        try:
            return await finish_even_if_cancelled(commit)
        except AtlasError:
            self._engine.forget(record.state)
            raise

    async def _feed(self, base: LoadedSession | None, token_ids: list[int]) -> tuple[SessionRecord, Fed]:
        """The session's record after `token_ids`, no document open; and what was fed, pending ones included."""
        record = None if base is None else base.record
        sequence = Sequence(
            new_sequence_id(),
            token_ids,
            state=None if record is None else record.state,
            tenant=self._request.session.tenant,
            priority=Priority.BACKGROUND,
        )
        output = await self._engine.feed(sequence, has_begun=self._num_tokens > 0)
        assert output.state is not None
        assert output.fed_token_ids is not None
        self._committed.resumed(base, output.resume)
        self._num_tokens += len(token_ids)
        fed = Fed(output.fed_token_ids)
        if record is not None:
            return replace(record, state=output.state, open_ingest=None), fed
        return SessionRecord(state=output.state), fed

    def _progress(self, position: DocumentPosition, base: LoadedSession) -> IngestProgress:
        rate = self._num_tokens / max(time.monotonic() - self._started, 1e-9)
        return IngestProgress(position.offset, self._num_tokens, rate, base.head.position, base.head.version)

    async def _repeat(self, finished: StoredDocument, pieces: AsyncIterator[bytes]) -> RepeatedIngest:
        """The stored result, when these are that document's bytes; of a resumed one only the length is compared."""
        offset = self._request.offset
        reader = DocumentReader(self._tokenizer, DocumentPosition(offset))
        async for piece in pieces:
            await asyncio.to_thread(reader.push, piece)
            reader.take(reader.num_tokens)
        await asyncio.to_thread(reader.finish)
        reader.take(reader.num_tokens)
        is_same = offset > 0 or reader.position.digest.hex() == finished.content_digest
        if reader.position.offset != finished.num_bytes or not is_same:
            raise IdempotencyMismatch("this document id or Idempotency-Key was used for another document")
        response = dict(finished.response)
        return RepeatedIngest(**{**response, "session": CommittedSession(**response["session"])})

"""Messages that a session learns and does not answer: one commit, or none when the request is a repeat."""

import asyncio
from dataclasses import asdict, dataclass, field, replace

from atlas_model.text import ChatFormat, Tokenizer
from engine.engine import Engine
from engine.errors import AtlasError, EmptyPrompt, IngestOpen, SessionExists, SessionNotFound, VersionConflict
from engine.sequence import Priority, Sequence
from engine.sessions.beginnings import NewSession
from engine.sessions.committed import CommittedSessions
from engine.sessions.host_copies import LoadedSession
from engine.sessions.ledger import Message, extend_ledger, read_new_messages
from engine.sessions.prompts import message_token_ids
from engine.sessions.shielding import finish_even_if_cancelled
from engine.sessions.stored_turns import RequestIdentity, StoredTurns, stored_change
from engine.sessions.token_logs import Fed
from engine.sessions.turn import CommittedSession, new_sequence_id
from engine.snapshots.snapshot import SessionRecord
from engine.stores.base import SessionKey


@dataclass(frozen=True, slots=True)
class LearnRequest:
    """begins: the session must be new, and this is how it begins; None is for one that must be there."""

    session: SessionKey
    messages: tuple[Message, ...]
    begins: NewSession | None = None
    if_match: int | None = None
    identity: RequestIdentity = field(default_factory=RequestIdentity)


@dataclass(frozen=True, slots=True)
class Learned:
    """num_tokens: that were read for it; none for a repeat."""

    session: CommittedSession
    num_tokens: int


async def learn_messages(
    request: LearnRequest, committed: CommittedSessions, engine: Engine, tokenizer: Tokenizer, chat_format: ChatFormat
) -> Learned:
    """To be called inside the session's lease. Every message is new.

    Raises SessionNotFound, SessionExists, VersionConflict, IngestOpen, EmptyPrompt, IdempotencyMismatch, StoreFull and
    what the engine and the store do.
    """
    base = await committed.find_with_answers(request.session)
    stored = base.stored if base is not None and base.stored is not None else StoredTurns()
    if base is not None and (repeated := stored.find_turn(base.head.version, request.identity)) is not None:
        await committed.confirm(request.session, base.head)
        return Learned(CommittedSession(**repeated.response), 0)
    _check(request, base)
    await committed.check_room(request.session, base)

    record = None if base is None else base.record
    reading = await asyncio.to_thread(
        read_new_messages, request.messages, None if record is None else record.system_digest
    )
    token_ids = await asyncio.to_thread(
        message_token_ids, tokenizer, chat_format, reading.messages, is_first=record is None
    )
    state = None if record is None else record.state
    tenant = request.session.tenant
    output = await engine.feed(
        Sequence(new_sequence_id(), token_ids, state=state, tenant=tenant, priority=Priority.BACKGROUND)
    )
    assert output.state is not None
    assert output.fed_token_ids is not None
    committed.resumed(base, output.resume)
    ledger = extend_ledger(() if record is None else record.ledger, reading.entries)
    new = SessionRecord(output.state, ledger, reading.system_digest)
    session = CommittedSession(
        session_id=request.session.session_id,
        version=1 if base is None else base.head.version + 1,
        committed=True,
        durability=committed.durability,
        position=output.state.position,
    )
    stored = stored.with_turn(stored_change(session.version, request.identity, asdict(session)))
    stored = replace(stored, tokens_digest=output.state.tokens_digest.hex())
    fed = Fed(output.fed_token_ids, reading.entries)
    head = None if base is None else base.head
    try:
        commit = committed.commit(request.session, head, new, stored, fed, request.begins)
        await finish_even_if_cancelled(commit)
    except AtlasError:
        engine.forget(output.state)
        raise
    return Learned(session, len(token_ids))


def _check(request: LearnRequest, base: LoadedSession | None) -> None:
    """Raises what says that these messages cannot be learned now."""
    if not request.messages:
        raise EmptyPrompt("there are no messages")
    if base is None and request.begins is None:
        raise SessionNotFound("there is no session with this id")
    if base is not None and request.begins is not None:
        raise SessionExists("a session with this id exists")
    version = 0 if base is None else base.head.version
    if request.if_match is not None and request.if_match != version:
        raise VersionConflict(f"the session is at version {version}", current=version)
    if base is not None and base.record is not None and (opened := base.record.open_ingest) is not None:
        raise IngestOpen(f"document {opened.document_id} is open at offset {opened.offset}: finish it, or rewind")

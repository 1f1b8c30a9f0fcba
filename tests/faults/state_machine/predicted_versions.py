"""What beginning, carrying, naming and going back to versions must answer and leave behind."""

from collections.abc import Mapping
from dataclasses import replace

from tests.faults.state_machine.model import Answered, Memory, Session, begun, committed, renamed
from tests.faults.state_machine.operations import (
    Carry,
    Create,
    Delete,
    Fork,
    Name,
    Refused,
    Rewind,
    Seen,
    Unname,
    request_digest,
)
from tests.faults.state_machine.predicted import Prediction, done, refused, repeated

Sessions = Mapping[str, Session]


def predict_create(create: Create, sessions: Sessions) -> Prediction:
    return _predict_begin(create, sessions, Memory(), create.ttl_seconds)


def predict_fork(fork: Fork, sessions: Sessions) -> Prediction:
    session = sessions.get(fork.session)
    known = repeated(session, fork)
    if isinstance(known, Refused) or (known is not None and known.version == 0):
        return _predict_begin(fork, sessions, Memory(), None)
    source = sessions.get(fork.source)
    version = None if source is None else source.find(fork.version)
    if source is None or version is None:
        return refused("session_not_found" if source is None else "version_not_found")
    documents = tuple(
        replace(document, seen=document.seen and replace(document.seen, version=0))
        for document in version.memory.documents
    )
    memory = replace(version.memory, answers=(), documents=documents)
    return _predict_begin(fork, sessions, memory, source.ttl_seconds)


def predict_carry(carry: Carry, sessions: Sessions) -> Prediction:
    source = sessions.get(carry.source)
    version = None if source is None else source.find(carry.version)
    if source is None or version is None:
        return refused("session_not_found" if source is None else "version_not_found")
    if not version.memory.token_ids:
        return refused("version_not_found")
    if carry.session in sessions:
        return refused("session_exists")
    memory = replace(version.memory, answers=(), documents=())
    return done(begun(memory, None, Answered(0, None, "", Seen(0, memory.position))))


def predict_rewind(rewind: Rewind, sessions: Sessions) -> Prediction:
    session = sessions.get(rewind.session)
    if session is None:
        return refused("session_not_found")
    known = repeated(session, rewind)
    if known is not None:
        return Prediction(known if isinstance(known, Refused) else known.seen)
    target = session.find(rewind.version)
    if target is None:
        return refused("version_not_found")
    if rewind.if_match not in (None, session.committed.number):
        return refused("version_conflict")
    number = session.committed.number + 1
    seen = Seen(number, target.memory.position, rewound_to=target.number)
    answer = Answered(number, rewind.key, request_digest(rewind), seen)
    return Prediction(seen, (committed(session, target.memory.with_answer(answer), target.number),))


def predict_name(name: Name, sessions: Sessions) -> Prediction:
    session = sessions.get(name.session)
    version = None if session is None else session.find(name.version)
    if session is None or version is None:
        return refused("session_not_found" if session is None else "version_not_found")
    if version is session.committed and version.memory.open_document is not None:
        return refused("ingest_open")
    if session.find(name.name) not in (None, version) or version.name not in (None, name.name):
        return refused("invalid_request")
    return done(renamed(session, version.number, name.name))


def predict_unname(unname: Unname, sessions: Sessions) -> Prediction:
    session = sessions.get(unname.session)
    version = None if session is None else session.find(unname.name)
    if session is None or version is None:
        return refused("session_not_found" if session is None else "version_not_found")
    return done(renamed(session, version.number, None))


def predict_delete(delete: Delete, sessions: Sessions) -> Prediction:
    if delete.session not in sessions:
        return refused("session_not_found")
    return Prediction(Seen(0, 0), (None,))


def _predict_begin(operation: Create | Fork, sessions: Sessions, memory: Memory, ttl_seconds: int | None) -> Prediction:
    """The new session has `memory`, unless there is one that this very request has begun."""
    session = sessions.get(operation.session)
    known = repeated(session, operation)
    if session is None:
        seen = Seen(0, memory.position)
        return done(begun(memory, ttl_seconds, Answered(0, operation.key, request_digest(operation), seen)))
    if isinstance(known, Refused):
        return Prediction(known)
    if known is None or known.version != 0:
        return refused("session_exists")
    return done(session, is_change=False)

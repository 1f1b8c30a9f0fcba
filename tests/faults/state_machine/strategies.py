"""Operations that make sense, and some that do not, for the sessions that the model knows at the moment."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from engine.sessions import History, Message
from tests.faults.state_machine.model import Session
from tests.faults.state_machine.operations import (
    Carry,
    Create,
    Delete,
    Fork,
    Ingest,
    Name,
    Operation,
    Retriable,
    Rewind,
    Turn,
    Unname,
)

TTL_SECONDS = 100
SESSION_IDS = ("a", "b", "c")
NAMES = ("mark", "flag")
TEXTS = ("one", "two", "say three")
DOCUMENTS = {f"doc{n}": "".join(f"line {i} of {n} is {i * 37 % 101}\n" for i in range(5 * n)).encode() for n in (1, 2)}
KEYS = st.sampled_from((None, None, None, "k1", "k2", "k3", "k4"))

Sessions = Mapping[str, Session]
Draw = Any


@st.composite
def turns(draw: Draw, sessions: Sessions) -> Turn:
    """A text alone, or behind some of what a version has read, as a client resends it."""
    session_id = draw(_known(sessions) | st.sampled_from(SESSION_IDS))
    session = sessions.get(session_id)
    known: tuple[Message, ...] = ()
    if session is not None and draw(st.booleans()):
        ledger = draw(st.sampled_from(session.versions)).memory.ledger
        known = ledger[len(ledger) - draw(st.integers(0, len(ledger))) :]
        known = tuple(Message(message.role, f" {message.content}\n") for message in known)
    system = draw(st.sampled_from((None, None, "be brief", "be kind")))
    return Turn(
        session=session_id,
        messages=(
            *((Message("system", system),) if system else ()),
            *known,
            Message("user", draw(st.sampled_from(TEXTS))),
        ),
        history=draw(st.sampled_from((History.AUTO, History.AUTO, History.NEW, *((History.MATCH,) if known else ())))),
        may_rewind=draw(st.booleans()),
        read_only=draw(st.sampled_from((False, False, True))),
        max_tokens=draw(st.integers(1, 3)),
        if_match=draw(_if_match(session)),
        key=draw(KEYS),
        is_retry=draw(st.booleans()),
    )


@st.composite
def ingests(draw: Draw, sessions: Sessions) -> Ingest:
    """A document from its beginning, or the rest of the one that is open, whole or broken off."""
    session_id = draw(_known(sessions) | st.sampled_from(SESSION_IDS))
    session = sessions.get(session_id)
    document_id = draw(st.sampled_from(list(DOCUMENTS)))
    offset, is_told = 0, True
    opened = None if session is None else session.memory.open_document
    if opened is not None and draw(st.sampled_from((True, True, False))):
        document_id, offset = opened.document_id, len(opened.raw)
        is_told = draw(st.booleans())
    elif draw(st.sampled_from((False,) * 7 + (True,))):
        offset = draw(st.sampled_from((1, 40, 10_000)))
    return Ingest(
        session=session_id,
        document_id=document_id if is_told else None,
        raw=draw(st.sampled_from((DOCUMENTS[document_id],) * 7 + (DOCUMENTS["doc1"], b""))),
        offset=offset,
        piece_num_bytes=draw(st.sampled_from((7, 50, 1000))),
        breaks_after=draw(st.sampled_from((None, None, None, None, 1, 3, 12))),
        if_match=draw(_if_match(session)),
        key=draw(KEYS),
    )


@st.composite
def creations(draw: Draw, _: Sessions) -> Create:
    return Create(
        session=draw(st.sampled_from(SESSION_IDS)),
        ttl_seconds=draw(st.sampled_from((None, TTL_SECONDS))),
        key=draw(KEYS),
        is_retry=draw(st.booleans()),
    )


@st.composite
def rewinds(draw: Draw, sessions: Sessions) -> Rewind:
    session_id = draw(_known(sessions))
    session = sessions.get(session_id)
    return Rewind(
        session=session_id,
        version=draw(_version(session)),
        if_match=draw(_if_match(session)),
        key=draw(KEYS),
        is_retry=draw(st.booleans()),
    )


@st.composite
def forks(draw: Draw, sessions: Sessions) -> Fork | Carry:
    source, session_id = draw(_known(sessions)), draw(_free(sessions))
    version = draw(st.none() | _version(sessions.get(source)))
    if draw(st.booleans()):
        return Carry(source, version, session_id)
    return Fork(source, version, session_id, draw(KEYS), draw(st.booleans()))


@st.composite
def namings(draw: Draw, sessions: Sessions) -> Name | Unname:
    session_id, name = draw(_known(sessions)), draw(st.sampled_from(NAMES))
    if draw(st.sampled_from((True, True, False))):
        return Name(session_id, draw(st.none() | _version(sessions.get(session_id))), name)
    return Unname(session_id, name)


@st.composite
def deletions(draw: Draw, _: Sessions) -> Delete:
    return Delete(draw(st.sampled_from(SESSION_IDS)))


@st.composite
def repetitions(draw: Draw, performed: Sequence[Operation]) -> Operation:
    """One of those once more, by a client that got no answer."""
    operation: Operation = draw(st.sampled_from(performed[::-1]))
    return replace(operation, is_retry=draw(st.booleans())) if isinstance(operation, Retriable) else operation


def operations(sessions: Sessions) -> st.SearchStrategy[Operation]:
    """Any of them, turns most often."""
    kinds = (turns, turns, ingests, rewinds, forks, namings, creations, deletions)
    return st.one_of([kind(sessions) for kind in kinds])


def _known(sessions: Sessions) -> st.SearchStrategy[str]:
    """Mostly one that there is."""
    return st.sampled_from([*sorted(sessions) * 3, *SESSION_IDS])


def _free(sessions: Sessions) -> st.SearchStrategy[str]:
    """Mostly one that there is not."""
    return st.sampled_from([*sorted(set(SESSION_IDS) - sessions.keys()) * 3, *SESSION_IDS])


def _version(session: Session | None) -> st.SearchStrategy[int | str]:
    """Mostly one that is kept."""
    kept = () if session is None else session.versions
    names = [version.name for version in kept if version.name is not None]
    numbers = [version.number for version in kept]
    return st.sampled_from([*numbers[1:], *numbers, *numbers[1:], *names, *names, 7, "nobody"])


def _if_match(session: Session | None) -> st.SearchStrategy[int | None]:
    version = 0 if session is None else session.committed.number
    return st.sampled_from((None, None, None, None, version, version + 1))

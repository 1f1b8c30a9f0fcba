"""What sessions are, in the simplest words: the versions that are kept, and the tokens that each of them has read.

No store, no state, no lease. Commits, retention, names and idle time are here; what an operation makes of them is in
`predictions`.
"""

from dataclasses import dataclass, field, replace

from engine.sessions import Message
from engine.snapshots.tokens_digest import INITIAL_DIGEST, extend_digest
from tests.faults.state_machine.operations import Seen, View

NUM_KEPT = 2
COMMIT_NUM_TOKENS = 24
MAX_ANSWERS = 8


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that will be answered and not carried out when it comes again."""

    version: int
    key: str | None
    digest: str
    seen: Seen


@dataclass(frozen=True, slots=True)
class Document:
    """raw: all of it that was read. seen: None while it is open."""

    document_id: str
    raw: bytes
    key: str | None = None
    seen: Seen | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """All that the future of a version depends on. The last `num_pending` tokens are said and not read yet."""

    token_ids: tuple[int, ...] = ()
    num_pending: int = 0
    ledger: tuple[Message, ...] = ()
    system: str | None = None
    open_document: Document | None = None
    answers: tuple[Answered, ...] = ()
    documents: tuple[Document, ...] = ()

    @property
    def position(self) -> int:
        return len(self.token_ids) - self.num_pending

    @property
    def tokens_digest(self) -> str:
        return extend_digest(INITIAL_DIGEST, self.token_ids[: self.position]).hex()

    def with_answer(self, answer: Answered) -> "Memory":
        return replace(self, answers=(*self.answers, answer)[-MAX_ANSWERS:])


@dataclass(frozen=True, slots=True)
class Version:
    number: int
    memory: Memory
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """versions: those that are kept, the committed one first. An object never changes: every commit and every change of
    a name makes another, so that `is` tells whether a writer was overtaken."""

    versions: tuple[Version, ...]
    ttl_seconds: int | None = None

    @property
    def committed(self) -> Version:
        return self.versions[0]

    @property
    def memory(self) -> Memory:
        return self.committed.memory

    def find(self, version: int | str | None) -> Version | None:
        if version is None:
            return self.committed
        return next((kept for kept in self.versions if version in (kept.number, kept.name)), None)

    def view(self) -> View:
        document = self.memory.open_document
        return View(
            tokens_digest=self.memory.tokens_digest,
            open_document=None if document is None else (document.document_id, len(document.raw)),
            ttl_seconds=self.ttl_seconds,
            versions=tuple((kept.number, kept.name, kept.memory.position) for kept in self.versions),
        )


def begun(memory: Memory, ttl_seconds: int | None, answer: Answered) -> Session:
    return Session((Version(0, memory.with_answer(answer)),), ttl_seconds)


def committed(session: Session | None, memory: Memory, rewound_to: int | None = None) -> Session:
    """What the middle of a document was is not kept once the next commit is there; what was gone back to is."""
    if session is None:
        return Session((Version(1, memory),))
    is_open = session.memory.open_document is not None
    older = session.versions[1:] if is_open else retained(session.versions, rewound_to)
    return replace(session, versions=(Version(session.committed.number + 1, memory), *older))


def renamed(session: Session, number: int, name: str | None) -> Session:
    """The same object when the version has this name."""
    new = tuple(replace(kept, name=name) if kept.number == number else kept for kept in session.versions)
    return session if new == session.versions else replace(session, versions=(new[0], *retained(new[1:])))


def retained(versions: tuple[Version, ...], rewound_to: int | None = None) -> tuple[Version, ...]:
    """Every named one, and of the others the one that was gone back to and the newest."""
    unnamed = [kept.number for kept in versions if kept.name is None]
    if rewound_to in unnamed:
        unnamed.remove(rewound_to)
        unnamed.insert(0, rewound_to)
    unnamed = unnamed[:NUM_KEPT]
    return tuple(kept for kept in versions if kept.name is not None or kept.number in unnamed)


@dataclass(slots=True)
class Idle:
    """Seconds since a session was used: an operation that was refused may or may not have been a use."""

    least: float = 0.0
    most: float = 0.0


@dataclass(slots=True)
class Model:
    """All sessions that exist, and how long each has been idle."""

    sessions: dict[str, Session] = field(default_factory=dict)
    idle: dict[str, Idle] = field(default_factory=dict)

    def put(self, session_id: str, session: Session | None) -> None:
        if session is None:
            self.sessions.pop(session_id, None)
            self.idle.pop(session_id, None)
        else:
            self.sessions[session_id] = session
            self.idle.setdefault(session_id, Idle())

    def used(self, session_id: str, *, surely: bool) -> None:
        if session_id in self.idle:
            self.idle[session_id].least = 0.0
            if surely:
                self.idle[session_id].most = 0.0

    def let_pass(self, seconds: float) -> set[str]:
        """Ends the sessions whose time is certainly over; those that may have ended."""
        uncertain = set()
        for session_id, session in list(self.sessions.items()):
            idle = self.idle[session_id]
            idle.least += seconds
            idle.most += seconds
            if session.ttl_seconds is not None and idle.least >= session.ttl_seconds:
                self.put(session_id, None)
            elif session.ttl_seconds is not None and idle.most >= session.ttl_seconds:
                uncertain.add(session_id)
        return uncertain

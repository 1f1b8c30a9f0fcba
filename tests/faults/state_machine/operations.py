"""What a client may ask of sessions and what it may be told, as values: the model predicts them, replicas perform them,
and the two must agree."""

from dataclasses import dataclass, replace

from engine.sessions import History, Message


@dataclass(frozen=True, slots=True)
class Create:
    session: str
    ttl_seconds: int | None = None
    key: str | None = None
    is_retry: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    session: str
    messages: tuple[Message, ...]
    history: History = History.AUTO
    may_rewind: bool = False
    read_only: bool = False
    max_tokens: int = 3
    if_match: int | None = None
    key: str | None = None
    is_retry: bool = False


@dataclass(frozen=True, slots=True)
class Ingest:
    """The bytes of `raw` from `offset` on, in pieces; after `breaks_after` of those the client is gone."""

    session: str
    document_id: str | None
    raw: bytes
    offset: int = 0
    piece_num_bytes: int = 40
    breaks_after: int | None = None
    if_match: int | None = None
    key: str | None = None

    @property
    def pieces(self) -> list[bytes]:
        """Those that are sent."""
        starts = range(self.offset, len(self.raw), self.piece_num_bytes)
        return [self.raw[start : start + self.piece_num_bytes] for start in starts][: self.breaks_after]


@dataclass(frozen=True, slots=True)
class Rewind:
    session: str
    version: int | str
    if_match: int | None = None
    key: str | None = None
    is_retry: bool = False


@dataclass(frozen=True, slots=True)
class Fork:
    """`session` is the new one."""

    source: str
    version: int | str | None
    session: str
    key: str | None = None
    is_retry: bool = False


@dataclass(frozen=True, slots=True)
class Carry:
    """Exported from `source`, imported as `session`."""

    source: str
    version: int | str | None
    session: str


@dataclass(frozen=True, slots=True)
class Name:
    session: str
    version: int | str | None
    name: str


@dataclass(frozen=True, slots=True)
class Unname:
    session: str
    name: str


@dataclass(frozen=True, slots=True)
class Delete:
    session: str


Retriable = Create | Turn | Rewind | Fork
Operation = Retriable | Ingest | Carry | Name | Unname | Delete


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client is told. progress: bytes and version after each commit of a document."""

    version: int
    position: int
    text: str = ""
    rewound_to: int | None = None
    is_replay: bool = False
    num_bytes: int = 0
    num_tokens: int = 0
    progress: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """By an error's code, or `BROKEN_OFF`."""

    code: str


Outcome = Seen | Refused
BROKEN_OFF = Refused("the client went away")


@dataclass(frozen=True, slots=True)
class View:
    """What can be told of a session without loading it. versions: number, name and position of each, newest first."""

    tokens_digest: str
    open_document: tuple[str, int] | None
    ttl_seconds: int | None
    versions: tuple[tuple[int, str | None, int], ...]


def request_digest(operation: Retriable) -> str:
    """Equal for what is the same request, however it is repeated."""
    plain = replace(operation, key=None, is_retry=False)
    if isinstance(plain, Turn | Rewind):
        plain = replace(plain, if_match=None)
    return repr(plain)

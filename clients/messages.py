"""What the server says, as values: each class has a `parse` that takes decoded JSON and raises ProtocolError.

Fields that a newer server adds are ignored; nothing here opens a connection or reads a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from clients.errors import ProtocolError

JsonObject = Mapping[str, Any]


def as_object(value: object, what: str) -> JsonObject:
    if not isinstance(value, dict):
        raise ProtocolError(f"{what} is not a JSON object")
    return value


def required(body: JsonObject, name: str, kind: type, what: str) -> Any:
    """`body[name]`, which must be of that kind (an int is a float, a bool is not an int)."""
    value = body.get(name)
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ProtocolError(f"{what} has no {name}")
    return value


@dataclass(frozen=True, slots=True)
class OpenIngest:
    """A document that was begun and not finished; `offset` bytes of it are committed."""

    document_id: str
    offset: int

    @classmethod
    def parse(cls, value: object) -> Self:
        body = as_object(value, "open_ingest")
        return cls(str(body.get("document_id", "")), required(body, "offset", int, "open_ingest"))


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as the server describes it. `position` counts tokens, times are seconds since the epoch.

    `tokens_digest` says which tokens were read, exactly; a list of sessions does not have it. `token_log_num_bytes` is
    None for a session without a token log.
    """

    session_id: str
    version: int
    position: int
    num_bytes: int
    created: float
    last_used: float
    metadata: Mapping[str, str] = field(default_factory=dict)
    open_ingest: OpenIngest | None = None
    tokens_digest: str | None = None
    token_log_num_bytes: int | None = None

    @classmethod
    def parse(cls, value: object) -> Self:
        body = as_object(value, "session")
        open_ingest, token_log = body.get("open_ingest"), body.get("token_log")
        return cls(
            session_id=required(body, "id", str, "session"),
            version=required(body, "version", int, "session"),
            position=required(body, "position", int, "session"),
            num_bytes=required(body, "bytes", int, "session"),
            created=required(body, "created", float, "session"),
            last_used=required(body, "last_used", float, "session"),
            metadata=dict(body.get("metadata") or {}),
            open_ingest=None if open_ingest is None else OpenIngest.parse(open_ingest),
            tokens_digest=body.get("tokens_digest"),
            token_log_num_bytes=(
                None if token_log is None else required(as_object(token_log, "token_log"), "bytes", int, "token_log")
            ),
        )


@dataclass(frozen=True, slots=True)
class SessionPage:
    """Some of the caller's sessions; `has_more` says that another page begins after the last of these."""

    sessions: tuple[SessionInfo, ...]
    has_more: bool

    @classmethod
    def parse(cls, value: object) -> Self:
        body = as_object(value, "list of sessions")
        data = required(body, "data", list, "list of sessions")
        return cls(tuple(SessionInfo.parse(item) for item in data), bool(body.get("has_more", False)))


@dataclass(frozen=True, slots=True)
class MemorySample:
    """What a session's memory was like when `position` tokens were read; `time` is seconds since the epoch.

    layers: for each layer its `layer` and the numbers that README names, means over its heads; None where one could not
    be told.
    """

    position: int
    time: float
    layers: tuple[Mapping[str, float | None], ...]

    @classmethod
    def parse(cls, value: object) -> Self:
        body = as_object(value, "sample")
        layers = [as_object(layer, "layer") for layer in required(body, "layers", list, "sample")]
        for layer in layers:
            required(layer, "layer", int, "layer of a sample")
            for name, number in layer.items():
                if number is not None:
                    required(layer, name, float, "layer of a sample")
        position, time = required(body, "position", int, "sample"), required(body, "time", float, "sample")
        return cls(position, time, tuple(layers))


@dataclass(frozen=True, slots=True)
class SessionMemory:
    """A session's memory in numbers. heads: each head of each layer as it is now, as the server tells it.
    samples: over the session, oldest first."""

    session_id: str
    version: int
    position: int
    heads: tuple[JsonObject, ...]
    samples: tuple[MemorySample, ...]

    @classmethod
    def parse(cls, value: object) -> Self:
        body = as_object(value, "memory")
        samples = tuple(MemorySample.parse(sample) for sample in required(body, "samples", list, "memory"))
        if len({tuple(layer["layer"] for layer in sample.layers) for sample in samples}) > 1:
            raise ProtocolError("the samples of memory are of different layers")
        return cls(
            session_id=required(body, "id", str, "memory"),
            version=required(body, "version", int, "memory"),
            position=required(body, "position", int, "memory"),
            heads=tuple(as_object(head, "head") for head in required(body, "heads", list, "memory")),
            samples=samples,
        )


@dataclass(frozen=True, slots=True)
class SessionCommit:
    """What became of the session: `committed` is False for a read-only turn, `rewound_to` the version that was gone
    back to, if one was."""

    session_id: str
    version: int
    committed: bool
    durability: str
    position: int
    rewound_to: int | None = None

    @classmethod
    def parse(cls, value: object) -> Self:
        body = as_object(value, "session")
        return cls(
            session_id=required(body, "id", str, "session"),
            version=required(body, "version", int, "session"),
            committed=required(body, "committed", bool, "session"),
            durability=str(body.get("durability", "none")),
            position=required(body, "position", int, "session"),
            rewound_to=body.get("rewound_to"),
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call: `num_cached_tokens` were in the memory already, `num_written_tokens` were learned by it."""

    num_prompt_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int
    num_written_tokens: int

    @classmethod
    def parse(cls, value: object) -> Self:
        body = as_object(value, "usage")
        details = as_object(body.get("prompt_tokens_details") or {}, "prompt_tokens_details")
        return cls(
            num_prompt_tokens=required(body, "prompt_tokens", int, "usage"),
            num_completion_tokens=required(body, "completion_tokens", int, "usage"),
            num_cached_tokens=int(details.get("cached_tokens") or 0),
            num_written_tokens=int(details.get("cache_write_tokens") or 0),
        )


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """One event of a streamed answer: new text, and on the last ones why it ended, what was committed, what it cost."""

    text: str
    finish_reason: str | None = None
    session: SessionCommit | None = None
    usage: Usage | None = None

    @classmethod
    def parse(cls, value: object) -> Self:
        body = as_object(value, "chunk")
        choices = required(body, "choices", list, "chunk")
        choice = as_object(choices[0], "choice") if choices else {}
        delta = as_object(choice.get("delta") or {}, "delta")
        return cls(str(delta.get("content") or ""), choice.get("finish_reason"), *_session_and_usage(body))


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """A whole answer."""

    text: str
    finish_reason: str
    session: SessionCommit | None
    usage: Usage | None

    @classmethod
    def parse(cls, value: object) -> Self:
        body = as_object(value, "completion")
        choices = required(body, "choices", list, "completion")
        if not choices:
            raise ProtocolError("completion has no choices")
        choice = as_object(choices[0], "choice")
        message = as_object(choice.get("message"), "message")
        finish_reason = required(choice, "finish_reason", str, "choice")
        return cls(str(message.get("content") or ""), finish_reason, *_session_and_usage(body))


def _session_and_usage(body: JsonObject) -> tuple[SessionCommit | None, Usage | None]:
    session, usage = body.get("session"), body.get("usage")
    return (
        None if session is None else SessionCommit.parse(session),
        None if usage is None else Usage.parse(usage),
    )


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """How far a document is committed. `num_tokens` and `tokens_per_second` count what this call has fed."""

    num_committed_bytes: int
    num_total_bytes: int
    num_tokens: int
    tokens_per_second: float
    version: int


@dataclass(frozen=True, slots=True)
class IngestResult:
    """A document that is in the memory, to its end and durably."""

    document_id: str
    num_bytes: int
    num_tokens: int
    seconds: float
    session: SessionCommit

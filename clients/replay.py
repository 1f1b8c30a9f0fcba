"""A session made anew from its token log: the request, and what its events say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clients import protocol
from clients.messages import SessionCommit, as_object, required
from clients.protocol import EVENT_STREAM, Request


@dataclass(frozen=True, slots=True)
class ReplayProgress:
    """Tokens fed again so far, of how many, and their rate. Nothing of it is committed."""

    num_tokens: int
    num_total_tokens: int
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """A session whose state is what its token log leads to, durably."""

    num_tokens: int
    seconds: float
    session: SessionCommit


OnReplayProgress = Callable[[ReplayProgress], None]


def replay_request(session_id: str) -> Request:
    """The answer is a stream of progress events, and then the result."""
    return Request("POST", f"{protocol.session_path(session_id)}/replay", headers={"Accept": EVENT_STREAM})


def parse_event(data: str) -> ReplayProgress | ReplayResult:
    """One event. Raises ApiError, ProtocolError."""
    body = as_object(protocol.parse_event(data), "event")
    num_tokens = required(body, "tokens", int, "event")
    if body.get("done") is True:
        session = SessionCommit.parse(body.get("session"))
        return ReplayResult(num_tokens, required(body, "seconds", float, "event"), session)
    num_total_tokens = required(body, "total_tokens", int, "event")
    return ReplayProgress(num_tokens, num_total_tokens, required(body, "tokens_per_second", float, "event"))

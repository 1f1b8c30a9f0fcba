"""From a request to what it asks for, as far as all kinds of answers share it. Every refusal that can be known from the
request happens here, before a byte is sent."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request

from engine.errors import InvalidRequest
from engine.sessions import TurnRequest
from engine.stores.base import SessionKey
from server.dependencies import idempotency_key, if_match, is_library_retry, named_session, runtime_of
from server.frames.frame import Frame
from server.input.bodies import read_json
from server.middleware import RequestContext
from server.runtime import Serving
from server.schemas import GenerationRequest

A = TypeVar("A", bound="Asked")


@dataclass(frozen=True, slots=True)
class Asked:
    """A turn, and how its answer travels. ignored: names of the body's fields without effect."""

    turn: TurnRequest
    frame: Frame
    streams: bool
    ignored: Sequence[str] = ()


async def read_asked(request: Request, understand: Callable[[Request, Serving, dict[str, Any]], A]) -> A:
    """What the body asks for, in the understanding of its kind; it may run in another thread."""
    runtime = runtime_of(request)
    config = runtime.config
    asked = await read_json(
        request,
        config.max_body_bytes,
        config.body_timeout_seconds,
        lambda body: understand(request, runtime.serving(), body),
    )
    RequestContext.of(request).note.update(asked.turn.note)
    return asked


def turn_request(
    request: Request, serving: Serving, asked: GenerationRequest, meant: SessionKey | None = None
) -> TurnRequest:
    """What the body and the headers say of any kind of turn; what is read is for its kind to add.

    meant: the session that fields of its kind name.   Raises InvalidRequest and ModelNotFound.
    """
    config = runtime_of(request).config
    if asked.num_answers > config.max_num_sequences + config.max_num_waiting:
        param = "n" if asked.num_choices > 1 else "prompt"
        raise InvalidRequest(f"{param} asks for more answers than this server runs and queues", param=param)
    serving.check_model_name(asked.model)
    named = named_session(request, asked.session_id)
    if None not in (named, meant) and named != meant:
        raise InvalidRequest("the session that is named is not the one that is meant", param="session_id")
    turn = TurnRequest(
        sampling=asked.to_sampling(config.max_tokens_limit),
        digest=hashlib.sha256(asked.digest_source()).hexdigest(),
        session=named if meant is None else meant,
        read_only=bool(asked.read_only),
        if_match=if_match(request),
        idempotency_key=idempotency_key(request),
        is_retry=is_library_retry(request),
        note={name: value for name in ("user", "metadata") if (value := getattr(asked, name)) is not None},
        num_choices=asked.num_choices,
        tenant=RequestContext.of(request).tenant,
    )
    if turn.session is None:
        require_no_session("read_only", turn.read_only)
        require_no_session("If-Match", turn.if_match is not None)
    return turn


def require_no_session(name: str, is_asked: bool) -> None:
    """Raises InvalidRequest for a wish of a turn without a session that only a session could have."""
    if is_asked:
        raise InvalidRequest(f"{name} needs a session", param=name)

"""What a request to /v1/responses asks for: which session its turn is of, and what it goes on from."""

from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request

from engine.errors import InvalidRequest
from engine.sessions import Branch, History, NewSession, TurnRequest
from server.answers.asking import Asked, require_no_session, turn_request
from server.answers.response_ids import ResponseId
from server.dependencies import named_session, new_session_key, session_key
from server.frames.logprobs import TokenNames
from server.frames.response import ResponseFrame
from server.parameters import RESPONSE, review_items
from server.runtime import Serving
from server.schemas import ResponseRequest, validate

# As long as responses are kept elsewhere, counted from the last use.
TTL_SECONDS = 30 * 24 * 3600
SESSION_PREFIX = "resp-"


@dataclass(frozen=True, slots=True)
class AskedResponse(Asked):
    """previous: the response that it goes on from."""

    previous: ResponseId | None = None


def understand_response(request: Request, serving: Serving, body: dict[str, Any]) -> AskedResponse:
    """Raises InvalidRequest and ModelNotFound, and ResponseNotFound for a previous response that was never kept."""
    ignored = RESPONSE.review(body)
    review_items(body.get("input"), "input")
    asked = validate(ResponseRequest, body)
    if asked.conversation is not None and asked.previous_response_id is not None:
        raise InvalidRequest("conversation and previous_response_id exclude each other", param="previous_response_id")
    if asked.store and asked.read_only:
        raise InvalidRequest("what is read_only cannot be stored", param="store")
    previous = None if asked.previous_response_id is None else ResponseId.parse(asked.previous_response_id)
    session_id = asked.conversation if previous is None else previous.session_id
    meant = None if session_id is None else session_key(request, session_id)
    turn = replace(
        turn_request(request, serving, asked, meant),
        messages=asked.to_messages(),
        history=asked.to_history(),
        may_rewind=asked.on_divergence == "rewind",
        may_begin=asked.conversation is None,
    )
    is_kept = asked.store is not False and not asked.read_only
    if previous is not None:
        turn = _after(previous, request, asked, turn, is_kept=is_kept)
    elif turn.session is None:
        turn = _alone(request, turn, is_kept=is_kept)
    turn = replace(turn, read_only=turn.session is not None and not is_kept)
    names = None if asked.num_top_logprobs is None else TokenNames(serving.checkpoint.tokenizer)
    frame = ResponseFrame(serving.checkpoint.name, asked.told(is_kept=is_kept), names)
    return AskedResponse(turn, frame, bool(asked.stream), ignored, previous)


def _after(
    previous: ResponseId, request: Request, asked: ResponseRequest, turn: TurnRequest, *, is_kept: bool
) -> TurnRequest:
    """A client that names the session, or its version, wants no other: then there is no branch."""
    if turn.may_rewind:
        raise InvalidRequest("previous_response_id says what to go on from", param="on_divergence")
    if turn.if_match not in (None, previous.version):
        raise InvalidRequest("If-Match and previous_response_id name different versions", param="If-Match")
    if turn.if_match is not None or named_session(request, asked.session_id) is not None:
        return replace(turn, if_match=previous.version)
    if not is_kept:
        return replace(turn, session=None, begins=NewSession(source=turn.session, version=previous.version))
    branch = new_session_key(request, None, SESSION_PREFIX)
    return replace(turn, branch=Branch(previous.version, branch, TTL_SECONDS))


def _alone(request: Request, turn: TurnRequest, *, is_kept: bool) -> TurnRequest:
    require_no_session("history", turn.history is History.MATCH)
    require_no_session("on_divergence", turn.may_rewind)
    if not is_kept:
        return turn
    session = new_session_key(request, None, SESSION_PREFIX)
    return replace(turn, session=session, begins=NewSession(ttl_seconds=TTL_SECONDS))

"""/v1/conversations: sessions that OpenAI's library makes, names to its responses, and deletes.

A conversation is a session; any session's id is a conversation's. Items are messages that the memory learns, in one
commit and without an answer. A memory has no list of what it has read, so items can be added and not told one by one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine.sessions import CommittedSession, LearnRequest, NewSession, RequestIdentity
from engine.stores.base import Head, SessionKey
from server.answers.items import learned_item, learned_item_id
from server.answers.session_answer import session_headers
from server.dependencies import if_match, new_session_key, path_session, request_identity, runtime_of
from server.errors import UnsupportedOperation
from server.input.bodies import read_json
from server.input.strict_head import closed_query
from server.middleware import RequestContext
from server.parameters import review_items
from server.runtime import Runtime
from server.schemas import (
    CreateConversationRequest,
    CreateItemsRequest,
    UpdateConversationRequest,
    request_body,
    validate,
)

SESSION_PREFIX = "conv_"

B = TypeVar("B", CreateConversationRequest, CreateItemsRequest)
T = TypeVar("T")

router = APIRouter(prefix="/v1/conversations")


@router.post("", openapi_extra=request_body(CreateConversationRequest, is_required=False))
async def create_conversation(request: Request) -> Response:
    """A session that has read nothing, or the items."""
    runtime = runtime_of(request)

    def understand(body: dict[str, Any]) -> tuple[CreateConversationRequest, RequestIdentity]:
        wanted = _with_items(CreateConversationRequest, body)
        return wanted, request_identity(request, "converse", wanted.model_dump())

    wanted, identity = await _read(request, runtime, understand, may_be_absent=True)
    key = new_session_key(request, None, SESSION_PREFIX)
    sessions = runtime.serving().sessions
    if wanted.items:
        messages = tuple(item.to_message() for item in wanted.items)
        begins = NewSession(wanted.metadata or {})
        await _learn(request, LearnRequest(key, messages, begins, identity=identity))
    with sessions.versions() as versions:
        if wanted.items:
            head, _ = await versions.find(key, None)
        else:
            head = await versions.create(key, wanted.metadata or {}, None, identity)
    return _told(key, head)


@router.get("/{conversation_id}", dependencies=[Depends(closed_query)])
async def get_conversation(request: Request) -> Response:
    """What the conversation is called, and since when it is there."""
    key = path_session(request)
    with runtime_of(request).serving().sessions.versions() as versions:
        head, _ = await versions.find(key, None)
    return _told(key, head)


@router.post("/{conversation_id}", openapi_extra=request_body(UpdateConversationRequest))
async def update_conversation(request: Request) -> Response:
    """Other metadata. No new version: what is in flight goes on."""
    runtime = runtime_of(request)
    key = path_session(request)
    wanted = await _read(request, runtime, partial(validate, UpdateConversationRequest))
    with runtime.serving().sessions.versions() as versions:
        head = await versions.set_metadata(key, wanted.metadata or {})
    return _told(key, head)


@router.delete("/{conversation_id}", dependencies=[Depends(closed_query)])
async def delete_conversation(request: Request) -> Response:
    """With every byte of it, and all its responses."""
    key = path_session(request)
    await runtime_of(request).serving().sessions.delete(key)
    return JSONResponse({"id": key.session_id, "object": "conversation.deleted", "deleted": True})


@router.post("/{conversation_id}/items", openapi_extra=request_body(CreateItemsRequest))
async def create_items(request: Request) -> Response:
    """Learn messages, as one new version. Honours If-Match."""
    runtime = runtime_of(request)
    key = path_session(request)

    def understand(body: dict[str, Any]) -> tuple[CreateItemsRequest, RequestIdentity]:
        wanted = _with_items(CreateItemsRequest, body)
        return wanted, request_identity(request, "learn", {"session_id": key.session_id, **wanted.model_dump()})

    wanted, identity = await _read(request, runtime, understand)
    messages = tuple(item.to_message() for item in wanted.items)
    learning = LearnRequest(key, messages, if_match=if_match(request), identity=identity)
    session = await _learn(request, learning)
    return JSONResponse(_learned(session, wanted), headers=session_headers(key, session.version))


@router.get("/{conversation_id}/items")
async def list_items(request: Request) -> Response:
    """Refused: a memory has no list of what it has read."""
    raise _untold()


@router.get("/{conversation_id}/items/{item_id}")
async def get_item(request: Request) -> Response:
    """Refused, as the list is."""
    raise _untold()


@router.delete("/{conversation_id}/items/{item_id}")
async def delete_item(request: Request) -> Response:
    """Refused: nothing can be taken out of a memory."""
    raise UnsupportedOperation(
        "what was learned stays learned: rewind the session to an older version, or delete it", param="item_id"
    )


def _untold() -> UnsupportedOperation:
    return UnsupportedOperation(
        "the memory has learned the items; it keeps no list of them. GET /v1/responses/{id} has the last answers",
        param="conversation_id",
    )


async def _learn(request: Request, wanted: LearnRequest) -> CommittedSession:
    """Raises RateLimited when the caller has no tokens left, beside what SessionManager.learn does."""
    allowance = RequestContext.of(request).allowance
    allowance.check_tokens()
    learned = await runtime_of(request).serving().sessions.learn(wanted)
    allowance.charge_tokens(learned.num_tokens)
    return learned.session


async def _read(
    request: Request, runtime: Runtime, understand: Callable[[dict[str, Any]], T], *, may_be_absent: bool = False
) -> T:
    config = runtime.config
    limits = config.max_body_bytes, config.body_timeout_seconds
    return await read_json(request, *limits, understand, may_be_absent=may_be_absent)


def _with_items(model: type[B], body: dict[str, Any]) -> B:
    review_items(body.get("items"), "items")
    return validate(model, body)


def _told(key: SessionKey, head: Head) -> Response:
    body = {
        "id": key.session_id,
        "object": "conversation",
        "created_at": int(head.created),
        "metadata": dict(head.metadata),
    }
    return JSONResponse(body, headers=session_headers(key, head.version))


def _learned(session: CommittedSession, wanted: CreateItemsRequest) -> dict[str, Any]:
    items = [
        learned_item(learned_item_id(session, index), item.role, item.content)
        for index, item in enumerate(wanted.items)
    ]
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"],
        "last_id": items[-1]["id"],
        "has_more": False,
    }

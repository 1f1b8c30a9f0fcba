"""/v1/responses: turns of sessions, so that OpenAI's library keeps and branches memories without an extension.

A response is a version of a session, and its id says which. `previous_response_id` goes on from it: in its session
while that version is the committed one, else in a new session that has learned what that version had. A response
without a session begins one, which ends when nobody has used it for 30 days. `store: false` keeps nothing: with a
session the memory is read and learns nothing. `instructions` are a system message: fed once, and again when they differ
from the last that were; a response that leaves them out goes on with a memory that has read them.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine.errors import InvalidRequest, TurnStays
from server.answers.asking import read_asked
from server.answers.asking_response import SESSION_PREFIX, understand_response
from server.answers.replying import reply
from server.answers.session_answer import session_headers
from server.answers.stored_responses import StoredResponse, check_version, find_response
from server.connections.streaming import MEDIA_TYPE
from server.dependencies import path_segment, runtime_of
from server.errors import UnsupportedOperation
from server.frames.response_events import replayed_events
from server.input.strict_head import closed_query
from server.middleware import RequestContext
from server.schemas import ResponseRequest, request_body

StartingAfter = Annotated[int | None, Query(ge=0)]

router = APIRouter(prefix="/v1/responses")


@router.post("", openapi_extra=request_body(ResponseRequest))
async def create_response(request: Request) -> Response:
    """A turn of a conversation, after a response, or of a session of its own. SSE with `stream`."""
    asked = await read_asked(request, understand_response)
    if asked.previous is not None:
        with runtime_of(request).serving().sessions.versions() as versions:
            await check_version(versions, RequestContext.of(request).tenant, asked.previous)
    return await reply(request, asked)


@router.get("/{response_id}", dependencies=[Depends(closed_query)])
async def get_response(request: Request, stream: bool = False, starting_after: StartingAfter = None) -> Response:
    """A response as it was answered, one of the last 8 turns of its session; with `stream` its events, those after the
    number `starting_after`."""
    if starting_after is not None and not stream:
        raise InvalidRequest("starting_after needs stream", param="starting_after")
    found = await _find(request)
    headers = session_headers(found.session, found.version)
    if not stream:
        return JSONResponse(found.body, headers=headers)
    events = list(replayed_events(found.body))[0 if starting_after is None else starting_after + 1 :]
    return Response(b"".join(events), headers={"Cache-Control": "no-cache", **headers}, media_type=MEDIA_TYPE)


@router.delete("/{response_id}", dependencies=[Depends(closed_query)])
async def delete_response(request: Request) -> Response:
    """Take the last response of a session back: what it said and what was learned by it, with every byte. The session
    is what it was before; one that responses alone have made goes with its first. An older response is refused: what
    later ones have gone on from stays learned, and so it does in branches."""
    found = await _find(request)
    is_chain = found.session.session_id.startswith(SESSION_PREFIX)
    try:
        await runtime_of(request).serving().sessions.undo(found.session, found.version, may_delete=is_chain)
    except TurnStays as error:
        raise UnsupportedOperation(
            f"{error.message}: what was learned stays learned. Delete later responses first, or the whole session",
            param="response_id",
        ) from error
    return JSONResponse({"id": found.body["id"], "object": "response", "deleted": True})


@router.post("/{response_id}/cancel")
async def cancel_response(request: Request) -> Response:
    """Refused: nothing runs in the background. A client that closes its connection cancels."""
    raise UnsupportedOperation("no response runs in the background: close the connection instead", param="response_id")


@router.get("/{response_id}/input_items")
async def list_input_items(request: Request) -> Response:
    """Refused: what was read is in the memory, and the text is kept nowhere."""
    raise UnsupportedOperation("the memory has learned the input; its text is not kept", param="response_id")


async def _find(request: Request) -> StoredResponse:
    with runtime_of(request).serving().sessions.versions() as versions:
        return await find_response(versions, RequestContext.of(request).tenant, path_segment(request, 3))

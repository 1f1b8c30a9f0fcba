"""POST /v1/sessions/{id}/replay: the session's state made anew from its token log, as a new version.

With `Accept: text/event-stream` the answer is progress events and then the result. A client that goes away ends the
work, and the session is as it was.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine.sessions import ReplayProgress, ReplayRequest, ReplayResult
from server.access.paying import paid
from server.answers.session_answer import session_headers, session_object
from server.connections.disconnect import run_until_disconnect
from server.connections.progress import progress_stream
from server.connections.streaming import MEDIA_TYPE, latest
from server.dependencies import if_match, path_session, request_identity, runtime_of
from server.input.strict_head import closed_query
from server.runtime import Runtime

router = APIRouter(prefix="/v1/sessions/{session_id}", dependencies=[Depends(closed_query)])


@router.post("/replay")
async def replay_session(request: Request) -> Response:
    """Feed the tokens of the session's log again, and commit what they lead to. Honours If-Match."""
    runtime = runtime_of(request)
    key, version = path_session(request), if_match(request)
    identity = request_identity(request, "replay", {"session_id": key.session_id})
    steps = paid(request, _run(runtime, ReplayRequest(key, version, identity)))
    if MEDIA_TYPE in request.headers.get("accept", ""):
        return await progress_stream(request, latest(steps), _body, {"X-Session-Id": key.session_id})
    result = await run_until_disconnect(request.receive, _result(steps))
    return JSONResponse(_body(result), headers=session_headers(key, result.session.version))


async def _run(runtime: Runtime, wanted: ReplayRequest) -> AsyncGenerator[ReplayProgress | ReplayResult, None]:
    async with runtime.serving().sessions.replay(wanted) as steps, aclosing(steps):
        async for step in steps:
            yield step


async def _result(steps: AsyncGenerator[ReplayProgress | ReplayResult, None]) -> ReplayResult:
    async with aclosing(steps):
        async for step in steps:
            if isinstance(step, ReplayResult):
                return step
    raise AssertionError("a replay ends with its result")


def _body(step: ReplayProgress | ReplayResult) -> dict[str, Any]:
    if isinstance(step, ReplayProgress):
        return {
            "object": "session.replay.progress",
            "tokens": step.num_tokens,
            "total_tokens": step.num_total_tokens,
            "tokens_per_second": step.tokens_per_second,
        }
    return {
        "object": "session.replay",
        "done": True,
        "tokens": step.num_tokens,
        "tokens_per_second": step.num_tokens / max(step.seconds, 1e-9),
        "seconds": step.seconds,
        "session": session_object(step.session),
    }

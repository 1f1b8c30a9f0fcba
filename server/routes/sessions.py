"""/v1/sessions: list, tell, delete, and let one read a document.

A document is the body of `POST /v1/sessions/{id}/ingest`: text/plain of any length as it arrives, the one file of a
multipart form in the same way, or JSON `{"text"}`.
The end of the body is the end of the document. Query: `document_id` names it, so that it is never learned twice;
`offset` is the byte at which an interrupted one goes on (the session's `open_ingest` says which).
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from atlas_model.inspection import HeadReport, inspect_memory
from engine.sessions import IngestProgress, IngestRequest, IngestResult
from server.access.paying import paid
from server.answers.session_answer import describe_session, session_headers, session_object
from server.connections.progress import progress_stream
from server.connections.streaming import MEDIA_TYPE, latest
from server.dependencies import idempotency_key, if_match, path_session, runtime_of
from server.errors import UnsupportedMediaType
from server.input.bodies import cut_in_pieces, media_type, read_json, read_pieces
from server.input.multipart import MULTIPART_TYPE, boundary_of, file_pieces
from server.input.strict_head import PlainInteger, closed_query
from server.middleware import RequestContext
from server.runtime import Runtime
from server.schemas import IngestTextRequest, document_body, validate

Limit = Annotated[int, Query(ge=1, le=1000), PlainInteger]
Id = Annotated[str | None, Query(pattern="^[A-Za-z0-9._:-]{1,128}$")]
Offset = Annotated[int, Query(ge=0, lt=2**63), PlainInteger]

router = APIRouter(prefix="/v1/sessions", dependencies=[Depends(closed_query)])


@router.get("")
async def list_sessions(request: Request, limit: Limit = 100, after: Id = None) -> Response:
    """The caller's sessions in the order of their ids, those after `after`."""
    tenant = RequestContext.of(request).tenant
    found = await runtime_of(request).serving().sessions.list_sessions(tenant, limit + 1, after)
    data = [describe_session(session_id, head) for session_id, head in found[:limit]]
    return JSONResponse({"object": "list", "data": data, "has_more": len(found) > limit})


@router.get("/{session_id}")
async def get_session(request: Request) -> Response:
    """What is committed; `tokens_digest` says which tokens were read, exactly."""
    key = path_session(request)
    head, tokens_digest = await runtime_of(request).serving().sessions.describe(key)
    body = {**describe_session(key.session_id, head), "tokens_digest": tokens_digest}
    return JSONResponse(body, headers=session_headers(key, head.version))


@router.get("/{session_id}/memory")
async def get_memory(request: Request) -> Response:
    """The committed memory: each head of each layer as it is now, and samples of the layers over the session."""
    key = path_session(request)
    serving = runtime_of(request).serving()
    async with serving.sessions.committed_state(key) as (head, state):
        heads: list[HeadReport] = []
        if state is not None:
            heads = await asyncio.to_thread(inspect_memory, serving.checkpoint.model, state.tensors)
        body = {
            "id": key.session_id,
            "object": "session.memory",
            "version": head.version,
            "position": 0 if state is None else state.position,
            "heads": [asdict(each) for each in heads],
            "samples": [] if state is None else [asdict(each) for each in state.memory_samples.samples],
        }
    return JSONResponse(body, headers=session_headers(key, head.version))


@router.delete("/{session_id}")
async def delete_session(request: Request) -> Response:
    """Forget what the session has learned, all its versions."""
    key = path_session(request)
    await runtime_of(request).serving().sessions.delete(key)
    return JSONResponse({"id": key.session_id, "object": "session.deleted", "deleted": True})


@router.post("/{session_id}/ingest", openapi_extra=document_body(IngestTextRequest))
async def ingest(request: Request, document_id: Id = None, offset: Offset = 0) -> Response:
    """Read a document. With `Accept: text/event-stream` the answer is progress events and then the result."""
    runtime = runtime_of(request)
    key = path_session(request)
    wanted = IngestRequest(
        session=key,
        document_id=document_id,
        offset=offset,
        idempotency_key=idempotency_key(request),
        if_match=if_match(request),
    )
    pieces = await _pieces(request, runtime)
    steps = paid(request, _run(runtime, wanted, pieces, RequestContext.of(request).note))
    if MEDIA_TYPE in request.headers.get("accept", ""):
        headers = {"X-Session-Id": key.session_id}
        return await progress_stream(request, latest(steps), _body, headers, watches=False)
    async with aclosing(steps):
        async for step in steps:
            if isinstance(step, IngestResult):
                return JSONResponse(_body(step), headers=session_headers(key, step.session.version))
    raise AssertionError("an ingest ends with its result")


async def _pieces(request: Request, runtime: Runtime) -> AsyncGenerator[bytes, None]:
    config = runtime.config
    kind = media_type(request)
    if kind in ("text/plain", ""):
        return read_pieces(request, config.body_timeout_seconds)
    if kind == MULTIPART_TYPE:
        boundary = boundary_of(request.headers["content-type"])
        return file_pieces(read_pieces(request, config.body_timeout_seconds), boundary)
    if kind != "application/json":
        raise UnsupportedMediaType("a document is text/plain, a multipart file, or JSON with a text")
    understand = partial(validate, IngestTextRequest)
    document = await read_json(request, config.max_body_bytes, config.body_timeout_seconds, understand)
    return cut_in_pieces(await asyncio.to_thread(document.text.encode))


async def _run(
    runtime: Runtime, wanted: IngestRequest, pieces: AsyncGenerator[bytes, None], note: dict[str, Any]
) -> AsyncGenerator[IngestProgress | IngestResult, None]:
    sessions = runtime.serving().sessions
    async with aclosing(pieces), sessions.ingest(wanted, pieces) as steps, aclosing(steps):
        async for step in steps:
            note["document_tokens"] = step.num_tokens
            yield step


def _body(step: IngestProgress | IngestResult) -> dict[str, Any]:
    if isinstance(step, IngestProgress):
        return {
            "object": "session.ingest.progress",
            "bytes": step.num_bytes,
            "tokens": step.num_tokens,
            "tokens_per_second": step.tokens_per_second,
            "position": step.position,
            "version": step.version,
        }
    return {
        "object": "session.ingest",
        "done": True,
        "document_id": step.document_id,
        "bytes": step.num_bytes,
        "tokens": step.num_tokens,
        "tokens_per_second": step.num_tokens / max(step.seconds, 1e-9),
        "seconds": step.seconds,
        "session": session_object(step.session),
    }

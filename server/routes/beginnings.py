"""How a session begins: empty, as another one's fork, or from exported bytes. Each is a new session at version 0.

An id that is taken is a 409; a repeat of the request that took it (Idempotency-Key, or a retry by the client's library)
is answered as the first was.
"""

import asyncio
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine.snapshots.buffers import aligned_buffer
from engine.snapshots.checksums import digest
from engine.snapshots.snapshot import max_snapshot_num_bytes
from engine.stores.base import Head, SessionKey
from server.answers.session_answer import describe_session, session_headers
from server.dependencies import new_session_key, path_session, request_identity, runtime_of, session_key
from server.input.bodies import read_json, read_octets
from server.input.strict_head import PlainInteger, closed_query
from server.schemas import CreateSessionRequest, ForkRequest, octets_body, request_body, validate

Ttl = Annotated[int | None, Query(ge=1, le=2**31), PlainInteger]

router = APIRouter(prefix="/v1/sessions", dependencies=[Depends(closed_query)])


@router.post("", openapi_extra=request_body(CreateSessionRequest, is_required=False))
async def create_session(request: Request) -> Response:
    """A session that has read nothing, or with `from` one that begins where another one's version stands."""
    config = runtime_of(request).config
    understand = partial(validate, CreateSessionRequest)
    wanted = await read_json(
        request, config.max_body_bytes, config.body_timeout_seconds, understand, may_be_absent=True
    )
    if wanted.source is not None:
        fork = ForkRequest(
            new_id=wanted.id,
            version=wanted.source.version,
            metadata=wanted.metadata,
            ttl_seconds=wanted.ttl_seconds,
        )
        return await _fork(request, session_key(request, wanted.source.session_id), fork)
    key = new_session_key(request, wanted.id)
    identity = request_identity(request, "create", wanted.model_dump())
    with runtime_of(request).serving().sessions.versions() as versions:
        head = await versions.create(key, wanted.metadata or {}, wanted.ttl_seconds, identity)
    return _begun(key, head)


@router.post("/{session_id}/fork", openapi_extra=request_body(ForkRequest, is_required=False))
async def fork_session(request: Request) -> Response:
    """A new session that has learned what this one had at a version, and shares nothing with it."""
    config = runtime_of(request).config
    understand = partial(validate, ForkRequest)
    wanted = await read_json(
        request, config.max_body_bytes, config.body_timeout_seconds, understand, may_be_absent=True
    )
    return await _fork(request, path_session(request), wanted)


@router.post("/import", openapi_extra=octets_body())
async def import_session(
    request: Request, session_id: Annotated[str | None, Query(alias="id")] = None, ttl_seconds: Ttl = None
) -> Response:
    """A session from the bytes of `GET /v1/sessions/{id}/export`, of this server or of another with the same model."""
    runtime = runtime_of(request)
    serving = runtime.serving()
    key = new_session_key(request, session_id)
    async with serving.sessions.transfer(key.tenant):
        # Memory that nothing is written to is not taken: a client that only declares much costs nothing.
        buffer = aligned_buffer(max_snapshot_num_bytes(serving.checkpoint.model.config))
        snapshot = await read_octets(request, buffer, runtime.config.body_timeout_seconds)
        content_digest = (await asyncio.to_thread(digest, snapshot)).hex()
        fields = {"digest": content_digest, "id": session_id, "ttl_seconds": ttl_seconds}
        identity = request_identity(request, "import", fields)
        with serving.sessions.versions() as versions:
            head = await versions.import_snapshot(key, [snapshot], ttl_seconds, identity)
    return _begun(key, head)


async def _fork(request: Request, source: SessionKey, wanted: ForkRequest) -> Response:
    key = new_session_key(request, wanted.new_id)
    identity = request_identity(request, "fork", {"source": source.session_id, **wanted.model_dump()})
    with runtime_of(request).serving().sessions.versions() as versions:
        head = await versions.fork(source, wanted.version, key, wanted.metadata, wanted.ttl_seconds, identity)
    return _begun(key, head)


def _begun(key: SessionKey, head: Head) -> Response:
    return JSONResponse(describe_session(key.session_id, head), headers=session_headers(key, head.version))

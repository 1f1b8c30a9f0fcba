"""/v1/sessions/{id}: its versions. Which are kept, their names, going back to one, and one as bytes.

A version is said by its number or by its name. Beginning another session from one is in `beginnings`.
"""

import re
from contextlib import AsyncExitStack
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine.stores.base import Head, SessionKey
from server.answers.session_answer import describe_versions, session_headers, session_object
from server.connections.download import Download
from server.dependencies import if_match, path_segment, path_session, request_identity, runtime_of
from server.input.bodies import read_json
from server.input.strict_head import closed_query
from server.schemas import NameVersionRequest, RewindRequest, VersionName, request_body, validate

router = APIRouter(prefix="/v1/sessions/{session_id}", dependencies=[Depends(closed_query)])


@router.get("/versions")
async def list_versions(request: Request) -> Response:
    """The versions that are kept, newest first."""
    key = path_session(request)
    with runtime_of(request).serving().sessions.versions() as versions:
        head, _ = await versions.find(key, None)
    return _listed(key, head)


@router.post("/versions", openapi_extra=request_body(NameVersionRequest))
async def name_version(request: Request) -> Response:
    """Keep a version, the committed one by default, for as long as it has this name; the versions that are kept."""
    runtime = runtime_of(request)
    key = path_session(request)
    understand = partial(validate, NameVersionRequest)
    config = runtime.config
    wanted = await read_json(request, config.max_body_bytes, config.body_timeout_seconds, understand)
    with runtime.serving().sessions.versions() as versions:
        head = await versions.name(key, wanted.version, wanted.name)
    return _listed(key, head)


@router.delete("/versions/{name}")
async def unname_version(request: Request) -> Response:
    """Take a name away; the versions that are kept."""
    key, name = path_session(request), path_segment(request, 5)
    with runtime_of(request).serving().sessions.versions() as versions:
        head = await versions.unname(key, name)
    return _listed(key, head)


@router.post("/rewind", openapi_extra=request_body(RewindRequest))
async def rewind_session(request: Request) -> Response:
    """Make a kept version the committed one again, as a new version. Honours If-Match."""
    runtime = runtime_of(request)
    key = path_session(request)
    understand = partial(validate, RewindRequest)
    config = runtime.config
    wanted = await read_json(request, config.max_body_bytes, config.body_timeout_seconds, understand)
    identity = request_identity(request, "rewind", {"session_id": key.session_id, **wanted.model_dump()})
    session = await runtime.serving().sessions.rewind(key, wanted.version, if_match(request), identity)
    answer = {"object": "session.rewound", **session_object(session)}
    return JSONResponse(answer, headers=session_headers(key, session.version))


@router.get("/export")
async def export_session(request: Request, version: Annotated[VersionName | None, Query()] = None) -> Response:
    """A version's snapshot, the committed one's by default, for `POST /v1/sessions/import`. Its ETag is its digest."""
    runtime = runtime_of(request)
    key = path_session(request)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(runtime.serving().sessions.transfer(key.tenant))
        with runtime.serving().sessions.versions() as versions:
            _, generation, parts = await versions.export(key, version)
        room = stack.pop_all()
    headers = session_headers(key, generation.version) | {"ETag": f'"{generation.digest}"'}
    file_name = f"session-{re.sub('[^A-Za-z0-9._-]', '_', key.session_id)}-v{generation.version}.atls"
    return Download(parts, file_name, headers, room=room)


def _listed(key: SessionKey, head: Head) -> Response:
    return JSONResponse(describe_versions(head), headers=session_headers(key, head.version))

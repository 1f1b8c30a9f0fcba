"""What routes take from a request beside its body: the runtime, the caller's session, and the conditional headers."""

import re
import uuid
from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request

from engine.errors import InvalidRequest
from engine.sessions import RequestIdentity
from engine.stores.base import SessionKey
from server.errors import PathNotFound
from server.input.strict_json import canonical
from server.middleware import RequestContext
from server.runtime import Runtime

_VERSION = re.compile(r'"(\d{1,18})"|(\d{1,18})')
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def runtime_of(request: Request) -> Runtime:
    runtime = request.app.state.runtime
    assert isinstance(runtime, Runtime)
    return runtime


def path_session(request: Request) -> SessionKey:
    """The session that the path names. Raises InvalidRequest, PathNotFound."""
    return session_key(request, path_segment(request, 3))


def path_segment(request: Request, index: int) -> str:
    """What stands behind that slash of the path (the first is 1), percent-decoded once. Raises PathNotFound."""
    raw_path: bytes = request.scope["raw_path"]
    segments = raw_path.decode("ascii", errors="replace").split("/")
    if index >= len(segments):
        # Routes are found in the decoded path, where an encoded slash looks like one.
        raise PathNotFound("not found")
    return unquote(segments[index], errors="replace")


def session_key(request: Request, session_id: str) -> SessionKey:
    """The caller's session of this id. Raises InvalidRequest."""
    context = RequestContext.of(request)
    context.note["session"] = True
    return SessionKey(context.tenant, session_id)


def new_session_key(request: Request, session_id: str | None, prefix: str = "s-") -> SessionKey:
    """The id of a session to be made; without a wish a new one, which the same Idempotency-Key gives again, so that a
    repeat finds what was made. Raises InvalidRequest."""
    if session_id is None:
        key = idempotency_key(request)
        session_id = f"{prefix}{uuid.uuid4().hex if key is None else sha256(key.encode()).hexdigest()[:32]}"
    return session_key(request, session_id)


def named_session(request: Request, session_id: str | None) -> SessionKey | None:
    """The session that a body's field and the header X-Session-Id name; both and different is an InvalidRequest."""
    from_header = request.headers.get("x-session-id")
    if session_id is not None and from_header is not None and session_id != from_header:
        raise InvalidRequest("session_id and X-Session-Id differ", param="session_id")
    wanted = from_header if session_id is None else session_id
    return None if wanted is None else session_key(request, wanted)


def if_match(request: Request) -> int | None:
    """The version of If-Match: `"7"` or `7`. Raises InvalidRequest."""
    header = request.headers.get("if-match")
    if header is None:
        return None
    found = _VERSION.fullmatch(header.strip())
    if found is None:
        raise InvalidRequest('If-Match must be a version: "7"', param="If-Match")
    return int(found[1] or found[2])


def idempotency_key(request: Request) -> str | None:
    """Raises InvalidRequest."""
    header = request.headers.get("idempotency-key")
    if header is not None and not _IDEMPOTENCY_KEY.fullmatch(header):
        raise InvalidRequest("Idempotency-Key must be 1 to 255 visible ASCII characters", param="Idempotency-Key")
    return header


def is_library_retry(request: Request) -> bool:
    """Whether OpenAI's library says that it is sending this request again."""
    count = request.headers.get("x-stainless-retry-count", "0")
    return count.isascii() and count.isdigit() and int(count[:9]) >= 1


def request_identity(request: Request, operation: str, fields: Mapping[str, Any]) -> RequestIdentity:
    """How a repeat of this request is recognised. operation, fields: what is asked for, as JSON values; which of two
    paths leads there is no part of it. Raises InvalidRequest for the Idempotency-Key."""
    digest = sha256(canonical([operation, fields])).hexdigest()
    return RequestIdentity(digest, idempotency_key(request), is_library_retry(request))

"""What routes take from a request beside its body: the runtime, the caller's session, and the conditional headers."""

import re
from urllib.parse import unquote

from starlette.requests import Request

from engine.errors import InvalidRequest
from engine.stores.base import SessionKey
from server.middleware import RequestContext
from server.runtime import Runtime

_VERSION = re.compile(r'"(\d{1,18})"|(\d{1,18})')
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def runtime_of(request: Request) -> Runtime:
    runtime = request.app.state.runtime
    assert isinstance(runtime, Runtime)
    return runtime


def path_session(request: Request) -> SessionKey:
    """The session that the path names, percent-decoded once. Raises InvalidRequest."""
    raw_path: bytes = request.scope["raw_path"]
    segment = raw_path.decode("ascii", errors="replace").split("/")[3]
    return SessionKey(RequestContext.of(request).tenant, unquote(segment, errors="replace"))


def named_session(request: Request, session_id: str | None) -> SessionKey | None:
    """The session that a body's field and the header X-Session-Id name; both and different is an InvalidRequest."""
    from_header = request.headers.get("x-session-id")
    if session_id is not None and from_header is not None and session_id != from_header:
        raise InvalidRequest("session_id and X-Session-Id differ", param="session_id")
    wanted = from_header if session_id is None else session_id
    return None if wanted is None else SessionKey(RequestContext.of(request).tenant, wanted)


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

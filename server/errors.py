# ruff: noqa: N818  (the names are the codes of the wire, and those carry no suffix)
"""What each failure is on the wire: one table from exception to status, one shape for every body (API.md)."""

import http
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from engine import errors
from engine.sessions.stored_turns import MAX_TURNS


class HttpError(errors.AtlasError):
    """A refusal that concerns HTTP itself and not what was asked."""


class InvalidApiKey(HttpError):
    code: ClassVar[str] = "invalid_api_key"


class Forbidden(HttpError):
    """The key is known and not for this."""

    code: ClassVar[str] = "forbidden"


class RequestTimeout(HttpError):
    code: ClassVar[str] = "timeout"


class BodyTooLarge(HttpError):
    code: ClassVar[str] = "body_too_large"


class UnsupportedMediaType(HttpError):
    code: ClassVar[str] = "unsupported_media_type"


class PathNotFound(HttpError):
    code: ClassVar[str] = "not_found"


class MethodNotAllowed(HttpError):
    code: ClassVar[str] = "method_not_allowed"


class ResponseNotFound(HttpError):
    """Absent, another tenant's, forged, forgotten: nobody is told which."""

    code: ClassVar[str] = "response_not_found"

    def __init__(self) -> None:
        super().__init__(f"there is no response with this id; a session keeps those of its last {MAX_TURNS} turns")


class UnsupportedOperation(errors.InvalidRequest):
    """What other servers can do with what they keep, and a memory cannot."""

    code: ClassVar[str] = "unsupported_operation"


class RateLimited(errors.Unavailable):
    """The caller has asked for as much as it may; it may ask again after `retry_after` seconds."""

    code: ClassVar[str] = "rate_limited"


class RequestTooCostly(HttpError):
    """More than the caller's limit ever allows at once."""

    code: ClassVar[str] = "rate_limited"


class TooManyConnections(errors.Unavailable):
    code: ClassVar[str] = "too_many_connections"


@dataclass(frozen=True, slots=True)
class _Rule:
    """may_retry: False tells the client's library to leave it; None lets the status speak."""

    status: int
    may_retry: bool | None = None


# The most special class wins.
_RULES: dict[type[Exception], _Rule] = {
    errors.InvalidRequest: _Rule(400),
    InvalidApiKey: _Rule(401),
    Forbidden: _Rule(403),
    errors.SessionNotFound: _Rule(404),
    errors.ModelNotFound: _Rule(404),
    errors.VersionNotFound: _Rule(404),
    PathNotFound: _Rule(404),
    ResponseNotFound: _Rule(404),
    MethodNotAllowed: _Rule(405),
    RequestTimeout: _Rule(408),
    errors.SessionBusy: _Rule(409),
    errors.SessionDiverged: _Rule(409, may_retry=False),
    errors.SessionExists: _Rule(409, may_retry=False),
    errors.TurnStays: _Rule(409, may_retry=False),
    errors.IngestOpen: _Rule(409, may_retry=False),
    errors.IngestOffset: _Rule(409, may_retry=False),
    errors.IdempotencyMismatch: _Rule(409, may_retry=False),
    errors.StateLost: _Rule(410),
    errors.VersionConflict: _Rule(412),
    BodyTooLarge: _Rule(413),
    UnsupportedMediaType: _Rule(415),
    errors.StateModelMismatch: _Rule(422, may_retry=False),
    errors.InvalidState: _Rule(422, may_retry=False),
    errors.StateTooNew: _Rule(422, may_retry=False),
    errors.QueueFull: _Rule(429),
    RateLimited: _Rule(429),
    RequestTooCostly: _Rule(429, may_retry=False),
    errors.MemoryDiverged: _Rule(500, may_retry=False),
    errors.StateCorrupt: _Rule(500, may_retry=False),
    errors.Unavailable: _Rule(503),
    errors.StoreMisconfigured: _Rule(503),
    errors.StoreFull: _Rule(507, may_retry=False),
}
_INTERNAL = _Rule(500)

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    412: "conflict_error",
    429: "rate_limit_error",
}


def status_of(error: Exception) -> int:
    return _rule(type(error)).status


def statuses_by_code(kind: type[errors.AtlasError] = errors.AtlasError) -> dict[str, int]:
    """The codes of this class and of all below it, each with its status."""
    below = [statuses_by_code(each) for each in kind.__subclasses__()]
    return {code: status for each in below for code, status in each.items()} | {kind.code: _rule(kind).status}


def error_type(status: int) -> str:
    """What OpenAI's clients know a status by."""
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def error_body(error: Exception) -> dict[str, Any]:
    """The one shape. What we did not foresee says nothing about itself."""
    status = status_of(error)
    is_ours = isinstance(error, errors.AtlasError)
    body: dict[str, Any] = {
        "message": error.message if isinstance(error, errors.AtlasError) else "internal error",
        "type": error_type(status),
        "param": getattr(error, "param", None) if is_ours else None,
        "code": code_of(error),
    }
    if isinstance(error, errors.IngestOffset):
        body["expected_offset"] = error.expected
    if isinstance(error, errors.StateLost | errors.StateCorrupt):
        body["last_whole_version"] = error.last_whole_version
    return {"error": body}


def code_of(error: Exception) -> str:
    return error.code if isinstance(error, errors.AtlasError) else errors.AtlasError.code


def error_response(error: Exception) -> JSONResponse:
    rule = _rule(type(error))
    headers: dict[str, str] = {}
    if rule.may_retry is False:
        headers["x-should-retry"] = "false"
    if isinstance(error, errors.Unavailable | errors.SessionBusy):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, InvalidApiKey):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error), rule.status, headers)


def of_framework(error: HTTPException) -> HttpError:
    """The framework's own refusals (no such path, no such method) as ours."""
    ours: dict[int, type[HttpError]] = {404: PathNotFound, 405: MethodNotAllowed}
    return ours.get(error.status_code, HttpError)(http.HTTPStatus(error.status_code).phrase.lower())


def _rule(kind: type[Exception]) -> _Rule:
    return next((_RULES[each] for each in kind.__mro__ if each in _RULES), _INTERNAL)

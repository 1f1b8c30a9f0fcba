"""The outermost ring: every request gets an id, a tenant and one line in the log; what nobody handled becomes a 500."""

import ipaddress
import logging
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.errors import AtlasError
from server.access.auth import METRICS_PATH, NO_KEY, Key
from server.access.keys_file import KeyRing
from server.access.rate_limits import UNLIMITED, Allowance, RateLimiter
from server.errors import Forbidden, InvalidApiKey, code_of, error_response, status_of
from server.input.strict_head import check_headers, check_query
from server.metrics import Metrics

OPEN_PATHS = ("/health", "/ready")
# Asked every few seconds by machines: their lines would drown the others.
PROBED_PATHS = (*OPEN_PATHS, METRICS_PATH)
CLIENT_GONE = 499
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_logger = logging.getLogger("server.requests")


@dataclass(slots=True)
class RequestContext:
    """What is known about a request beside the request.

    note: goes into its line of the log: numbers, names of ours, and what clients give for it (`user`, `metadata`).
        Never a session's id or text, for a log is read by many.
    allowance: what its key may still ask for.
    """

    request_id: str
    tenant: str
    started: float
    allowance: Allowance = UNLIMITED
    note: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, request: Request) -> "RequestContext":
        context = request.scope["state"]["context"]
        assert isinstance(context, RequestContext)
        return context


class Edge:
    def __init__(self, app: ASGIApp, key_ring: KeyRing, rate_limiter: RateLimiter, metrics: Metrics) -> None:
        self._app = app
        self._key_ring = key_ring
        self._rate_limiter = rate_limiter
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        wanted_id = headers.get("x-request-id", "")
        request_id = wanted_id if _REQUEST_ID.fullmatch(wanted_id) else uuid.uuid4().hex
        context = RequestContext(request_id, "", time.monotonic())
        scope.setdefault("state", {}).update(context=context, send=send)
        status = CLIENT_GONE

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update({"X-Request-Id": request_id, **context.allowance.headers()})
            await send(message)

        try:
            key = self._admit(scope, headers)
            context.tenant = key.tenant
            if scope["path"] not in PROBED_PATHS:
                context.allowance = self._rate_limiter.allowance(key)
                context.allowance.take_request()
            await self._app(scope, receive, send_with_id)
        except AtlasError as error:
            # Of what stands above: the application answers for its own.
            response = error_response(error)
            response.headers["Connection"] = "close"
            refused(self._metrics, context, error)
            await response(scope, receive, send_with_id)
        except ClientDisconnect:
            _logger.debug("the client of %s went away", request_id)
        except Exception as error:
            # Boundary: a bug in one request is that request's 500, in our shape, and the others' nothing.
            _logger.exception("request %s failed", request_id)
            response = error_response(error)
            refused(self._metrics, context, error)
            if status != CLIENT_GONE:
                raise
            await response(scope, receive, send_with_id)
        finally:
            self._metrics.answered(scope["method"], route_of(scope), status)
            _log(scope, context, status)

    def _admit(self, scope: Scope, headers: Headers) -> Key:
        """The caller's key. Raises InvalidRequest, InvalidApiKey and Forbidden."""
        check_headers(scope["headers"])
        check_query(scope["query_string"])
        if scope["path"] in OPEN_PATHS:
            return NO_KEY
        raw = headers.get("authorization")
        key = self._key_ring.current.find(None if raw is None else raw.encode("latin-1"))
        if key is None:
            raise InvalidApiKey("the API key is missing or unknown")
        if not key.opens(scope["path"]):
            raise Forbidden("the API key has no scope for this: sessions and answers want user, /metrics wants metrics")
        return key


def refused(metrics: Metrics, context: RequestContext, error: Exception) -> None:
    """Counts a refusal or a failure, and gives its code to the request's line."""
    metrics.refused(status_of(error), code_of(error))
    context.note["code"] = code_of(error)


def server_send(scope: Scope, send: Send) -> Send:
    """The server's own `send`, for what comes after a response's beginning, at which alone those who have wrapped it on
    the way to `send` look: past the four of them an event is made in seven eighths of the time."""
    own: Send = scope.get("state", {}).get("send", send)
    return own


def route_of(scope: Scope) -> str:
    """The template of the path that was found, which names no session; `none` when there is no such path."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "none"


def _log(scope: Scope, context: RequestContext, status: int) -> None:
    fields = {
        "request_id": context.request_id,
        "tenant": context.tenant,
        "client": _client_address(scope),
        "method": scope["method"],
        # The path would name the session.
        "route": route_of(scope),
        "status": status,
        "seconds": round(time.monotonic() - context.started, 6),
        **context.note,
    }
    level = logging.DEBUG if scope["path"] in PROBED_PATHS else logging.INFO
    _logger.log(level, "request", extra={"fields": fields})


def _client_address(scope: Scope) -> str | None:
    """Of the connection, or what a proxy that is believed says; a proxy may pass on what is no address."""
    host = scope["client"][0] if scope.get("client") else ""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None

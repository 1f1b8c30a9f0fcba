"""Which pages of other origins may call this server: none, unless origins are named.

It stands around everything else, so that a browser shows its page our refusals too, and answers the browser's own
question (the preflight), which comes without a key, itself.
"""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from engine.errors import InvalidRequest
from server.errors import error_response

METHODS = ("GET", "POST", "DELETE")
# What a page may read of an answer, beside what browsers show anyway.
EXPOSED_HEADERS = (
    "ETag",
    "Idempotent-Replayed",
    "Retry-After",
    "X-Ignored-Parameters",
    "X-RateLimit-Limit-Requests",
    "X-RateLimit-Limit-Tokens",
    "X-RateLimit-Remaining-Requests",
    "X-RateLimit-Remaining-Tokens",
    "X-RateLimit-Reset-Requests",
    "X-RateLimit-Reset-Tokens",
    "X-Request-Id",
    "X-Session-Id",
    "X-Session-Version",
    "X-Should-Retry",
)
MAX_AGE_SECONDS = 600


class Cors(CORSMiddleware):
    """Keys travel in a header that pages set themselves, so that no credentials of the browser's own are allowed."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=("*",),
            expose_headers=EXPOSED_HEADERS,
            max_age=MAX_AGE_SECONDS,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        refusal = error_response(InvalidRequest("this origin, method or header is not allowed"))
        for name in ("access-control-allow-origin", "vary"):
            if name in response.headers:
                refusal.headers[name] = response.headers[name]
        return refusal

"""The OpenAPI document, with what the framework does not see: the routes read their bodies and headers themselves, and
all errors have one shape. It is made from the routes, the schemas and the table of errors, so what is added there is in
it; only the words for a new group of paths are missing until somebody finds them here (`_TAGS`)."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from server.errors import error_type, statuses_by_code
from server.middleware import OPEN_PATHS, PROBED_PATHS
from server.schemas import component_schemas

_METHODS = ("get", "post", "put", "patch", "delete")
_DESCRIPTION = """Serves a language model whose memory learns at test time, over the OpenAI protocol. A session is what
the model has learned from one conversation and its documents; naming one in a request is all that it takes. Without
configured keys any `Authorization` is accepted. Errors have one shape, and their `code` says what to do."""
# A path's tag is that of the first prefix that fits.
_TAGS = (
    ("/v1/chat/", "Chat", "Turns of a session, or without one."),
    ("/v1/completions", "Completions", "Texts that go on."),
    ("/v1/responses", "Responses", "Turns whose answers have ids: each names a version of a session."),
    ("/v1/conversations", "Conversations", "Sessions, in the words of OpenAI's library."),
    (
        "/v1/sessions",
        "Sessions",
        "What has been learned: documents, versions, forks, files, and the memory as numbers.",
    ),
    ("/v1/models", "Model", "Which model is served, and its tokens."),
    ("/tokenize", "Model", ""),
    ("/detokenize", "Model", ""),
    ("/version", "Model", ""),
    ("/health", "Server", "Whether the server lives, and what it has counted."),
    ("/ready", "Server", ""),
    ("/metrics", "Server", ""),
)
_STATELESS_TAGS = ("Model", "Server")
_SESSION_ID = {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"}
_HEADERS = {
    "X-Session-Id": ("The session, as the field `session_id` has it.", _SESSION_ID),
    "Idempotency-Key": (
        "A repeat with the same key is answered as the first was, and not done again.",
        {"type": "string", "pattern": "^[!-~]{1,255}$"},
    ),
    "If-Match": (
        "The version that the session must have, or the answer is 412.",
        {"type": "string", "pattern": '^("[0-9]{1,18}"|[0-9]{1,18})$'},
    ),
}
_KEY, _CONDITION = ("Idempotency-Key",), ("Idempotency-Key", "If-Match")
_TURN = tuple(_HEADERS)
_HEADERS_OF_POST = {
    "/v1/chat/completions": _TURN,
    "/v1/completions": _TURN,
    "/v1/responses": _TURN,
    "/v1/conversations": _KEY,
    "/v1/conversations/{conversation_id}/items": _CONDITION,
    "/v1/sessions": _KEY,
    "/v1/sessions/import": _KEY,
    "/v1/sessions/{session_id}/fork": _KEY,
    "/v1/sessions/{session_id}/ingest": _CONDITION,
    "/v1/sessions/{session_id}/replay": _CONDITION,
    "/v1/sessions/{session_id}/rewind": _CONDITION,
}
_JSON, _EVENTS = "application/json", "text/event-stream"
# Of what answers with something else than JSON alone.
_MEDIA_TYPES = {
    "/v1/chat/completions": (_JSON, _EVENTS),
    "/v1/completions": (_JSON, _EVENTS),
    "/v1/responses": (_JSON, _EVENTS),
    "/v1/responses/{response_id}": (_JSON, _EVENTS),
    "/v1/sessions/{session_id}/ingest": (_JSON, _EVENTS),
    "/v1/sessions/{session_id}/replay": (_JSON, _EVENTS),
    "/v1/sessions/{session_id}/export": ("application/octet-stream",),
    "/metrics": ("text/plain",),
}
_REASONS = {
    400: "The request is wrong; `param` names the field.",
    401: "The API key is missing or unknown.",
    403: "The API key is not for this.",
    404: "There is no such thing.",
    408: "The body did not arrive in time.",
    409: "The session does not allow it, now or at all.",
    410: "What the session has learned is gone.",
    412: "The session is at another version.",
    413: "The body is too large.",
    415: "The body is of another type.",
    422: "The snapshot cannot be used here.",
    429: "Too much at once: come back after `Retry-After`.",
    500: "The server failed; the session is as it was.",
    503: "Not now: come back after `Retry-After`.",
    507: "The store has no room; the session is as it was.",
}
_OF_KEYS, _OF_BODIES, _OF_SESSIONS = (400, 401, 403, 429), (408, 413, 415), (404, 409, 410, 412, 422, 507)


def complete_openapi(app: FastAPI) -> None:
    """Makes `app.openapi` return the whole document. Once all routes are there."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        if "tags" not in document:
            _complete(document)
        return document

    # The framework's own way to replace the generator is to assign it.
    app.openapi = openapi  # type: ignore[method-assign]


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method, operation."""
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                yield path, method, item[method]


def _complete(document: dict[str, Any]) -> None:
    document["info"]["description"] = _DESCRIPTION
    document["tags"] = [{"name": tag, "description": text} for _, tag, text in _TAGS if text]
    document["security"] = [{"key": []}]
    document["components"] = {
        "schemas": {"Error": _error_schema(), **component_schemas()},
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    }
    for path, method, operation in operations(document):
        operation["tags"] = [next(tag for prefix, tag, _ in _TAGS if path.startswith(prefix))]
        if path in OPEN_PATHS:
            operation["security"] = []
        operation["parameters"] = [*operation.get("parameters", []), *_parameters(path, method, operation)]
        operation["responses"] = {
            "200": {
                "description": "Done",
                "content": {kind: {"schema": {}} for kind in _MEDIA_TYPES.get(path, (_JSON,))},
            },
            **{str(status): _refusal(status) for status in _statuses(path, operation)},
        }


def _parameters(path: str, method: str, operation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Those that the framework was not told of."""
    known = {parameter["name"] for parameter in operation.get("parameters", [])}
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    for name in names:
        if name not in known:
            schema = _SESSION_ID if name == "session_id" else {"type": "string", "minLength": 1}
            yield {"name": name, "in": "path", "required": True, "schema": schema}
    for name in _HEADERS_OF_POST.get(path, ()) if method == "post" else ():
        text, schema = _HEADERS[name]
        yield {"name": name, "in": "header", "required": False, "description": text, "schema": schema}


def _statuses(path: str, operation: dict[str, Any]) -> list[int]:
    """That an operation may answer with, beside 200."""
    statuses = {500, 503}
    if path not in OPEN_PATHS:
        statuses |= set(_OF_KEYS) - ({429} if path in PROBED_PATHS else set())
    if "requestBody" in operation:
        statuses |= set(_OF_BODIES)
    if operation["tags"][0] not in _STATELESS_TAGS:
        statuses |= set(_OF_SESSIONS)
    elif "{" in path or "requestBody" in operation:
        # Another model's name.
        statuses.add(404)
    return sorted(statuses)


def _refusal(status: int) -> dict[str, Any]:
    codes = sorted(code for code, its in statuses_by_code().items() if its == status)
    example = {"message": _REASONS[status], "type": error_type(status), "param": None, "code": codes[0]}
    return {
        "description": f"{_REASONS[status]} Codes: {', '.join(f'`{code}`' for code in codes)}.",
        "content": {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}, "example": {"error": example}}},
    }


def _error_schema() -> dict[str, Any]:
    properties = {
        "message": {"type": "string", "description": "For people. What was sent is not repeated in it."},
        "type": {"type": "string", "enum": sorted({error_type(status) for status in statuses_by_code().values()})},
        "param": {"type": ["string", "null"], "description": "The field or the header that is to blame."},
        "code": {"type": "string", "enum": sorted(statuses_by_code()), "description": "For programs."},
        "expected_offset": {"type": "integer", "description": "With `ingest_offset`: where the document goes on."},
        "last_whole_version": {
            "type": ["integer", "null"],
            "description": "With `state_lost` and `state_corrupt`: what the session can be rewound to.",
        },
    }
    required = ["message", "type", "param", "code"]
    error = {"type": "object", "required": required, "properties": properties, "additionalProperties": False}
    return {"type": "object", "required": ["error"], "properties": {"error": error}, "additionalProperties": False}

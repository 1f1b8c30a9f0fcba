"""A real server process, asked over HTTP, as the follower of a model sees it."""

from typing import Any

import httpx

from tests.faults.state_machine.following import UNREACHABLE
from tests.faults.state_machine.model import COMMIT_NUM_TOKENS, NUM_KEPT
from tests.faults.state_machine.operations import (
    Carry,
    Create,
    Delete,
    Fork,
    Ingest,
    Name,
    Operation,
    Outcome,
    Refused,
    Retriable,
    Rewind,
    Seen,
    Turn,
    Unname,
    View,
)
from tests.server.forked import ForkedServer

SETTINGS = {
    "kept_versions": str(NUM_KEPT),
    "ingest_commit_tokens": str(COMMIT_NUM_TOKENS),
    "lease_seconds": "0.2",
}


class ServerReplica:
    """Documents are sent whole: what a broken upload leaves is tried in the process."""

    def __init__(self, server: ForkedServer) -> None:
        self.server = server

    async def perform(self, operation: Operation) -> Outcome:
        try:
            response = self._ask(operation)
        except httpx.TransportError:
            return UNREACHABLE
        if response.status_code >= httpx.codes.BAD_REQUEST:
            return Refused(response.json()["error"]["code"])
        return _seen(operation, response)

    async def view(self, session_id: str) -> View | None:
        path = f"/v1/sessions/{session_id}"
        response = self.server.client.get(path)
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        told = response.raise_for_status().json()
        kept = self.server.client.get(f"{path}/versions").raise_for_status().json()["data"]
        mark = told["open_ingest"]
        return View(
            tokens_digest=told["tokens_digest"],
            open_document=None if mark is None else (mark["document_id"], mark["offset"]),
            ttl_seconds=told["ttl_seconds"],
            versions=tuple((version["version"], version["name"], version["position"]) for version in kept),
        )

    def _ask(self, operation: Operation) -> httpx.Response:
        client, headers = self.server.client, _headers(operation)
        path = f"/v1/sessions/{operation.session}"
        match operation:
            case Turn():
                return client.post("/v1/chat/completions", json=_body(operation), headers=headers)
            case Ingest():
                params = {"document_id": operation.document_id, "offset": operation.offset}
                given = {name: value for name, value in params.items() if value is not None}
                raw, plain = operation.raw[operation.offset :], {"Content-Type": "text/plain"}
                return client.post(f"{path}/ingest", content=raw, params=given, headers=headers | plain)
            case Create():
                body = {"id": operation.session, "ttl_seconds": operation.ttl_seconds}
                return client.post("/v1/sessions", json=body, headers=headers)
            case Fork():
                body = {"new_id": operation.session, "version": operation.version}
                return client.post(f"/v1/sessions/{operation.source}/fork", json=body, headers=headers)
            case Carry():
                params = {} if operation.version is None else {"version": operation.version}
                exported = client.get(f"/v1/sessions/{operation.source}/export", params=params)
                if exported.status_code != httpx.codes.OK:
                    return exported
                octets = {"Content-Type": "application/octet-stream"}
                wanted = {"id": operation.session}
                return client.post("/v1/sessions/import", content=exported.content, params=wanted, headers=octets)
            case Rewind():
                return client.post(f"{path}/rewind", json={"version": operation.version}, headers=headers)
            case Name():
                named = {"name": operation.name, "version": operation.version}
                return client.post(f"{path}/versions", json=named)
            case Unname():
                return client.delete(f"{path}/versions/{operation.name}")
            case Delete():
                return client.delete(path)


def _body(turn: Turn) -> dict[str, Any]:
    return {
        "session_id": turn.session,
        "messages": [{"role": message.role, "content": message.content} for message in turn.messages],
        "history": turn.history.value,
        "on_divergence": "rewind" if turn.may_rewind else "error",
        "read_only": turn.read_only,
        "max_tokens": turn.max_tokens,
        "temperature": 0,
    }


def _headers(operation: Operation) -> dict[str, str]:
    headers = {}
    if isinstance(operation, Retriable | Ingest) and operation.key is not None:
        headers["Idempotency-Key"] = operation.key
    if isinstance(operation, Retriable) and operation.is_retry:
        headers["x-stainless-retry-count"] = "1"
    if isinstance(operation, Turn | Ingest | Rewind) and operation.if_match is not None:
        headers["If-Match"] = f'"{operation.if_match}"'
    return headers


def _seen(operation: Operation, response: httpx.Response) -> Seen:
    told = response.json()
    match operation:
        case Delete():
            return Seen(0, 0)
        case Create() | Fork() | Carry():
            return Seen(told["version"], told["position"])
        case Name() | Unname():
            return Seen(told["data"][0]["version"], told["data"][0]["position"])
        case Rewind():
            return Seen(told["version"], told["position"], rewound_to=told["rewound_to"])
        case Ingest():
            session = told["session"]
            return Seen(session["version"], session["position"], num_bytes=told["bytes"], num_tokens=told["tokens"])
        case Turn():
            session, choice = told["session"], told["choices"][0]
            return Seen(
                version=session["version"],
                position=session["position"],
                text=choice["message"]["content"],
                rewound_to=session.get("rewound_to"),
                is_replay=response.headers.get("idempotent-replayed") == "true",
            )

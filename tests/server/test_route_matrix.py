"""Every route by every kind of caller. A route that is not in the table fails: somebody has to say who may use it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from server.access.auth import Key, Scope, key_digest
from server.access.keys_file import keys_file_line
from server.app import create_app
from server.config import ServerConfig
from server.runtime import Runtime
from tests.server.harness import ThreadedServer, ask, assert_refused, serving, user

OPEN, USER, METRICS = "open", "user", "metrics"
MINE, ABSENT = "mine", "absent"


@dataclass(frozen=True, slots=True)
class Route:
    """opens_to: OPEN to all, or the scope that a key needs.   request: what httpx sends.
    elsewhere: the error code for another tenant's session, the same as for none; None where the route makes one."""

    opens_to: str = USER
    request: dict[str, Any] = field(default_factory=dict)
    elsewhere: str | None = "session_not_found"


# `{session_id}` in a request stands for the session too, and `{conversation_id}` everywhere.
CHAT = {"json": {"messages": [user("?")], "max_tokens": 1, "session_id": "{session_id}", "read_only": True}}
COMPLETION = {"json": {"prompt": "?", "max_tokens": 1, "session_id": "{session_id}", "read_only": True}}
RESPONSE = {"json": {"input": "?", "max_output_tokens": 1, "conversation": "{session_id}", "store": False}}
ITEMS = {"json": {"items": [user("a")]}}
ROUTES = {
    ("GET", "/health"): Route(OPEN),
    ("GET", "/ready"): Route(OPEN),
    ("GET", "/metrics"): Route(METRICS),
    ("GET", "/version"): Route(),
    ("GET", "/openapi.json"): Route(),
    ("GET", "/docs"): Route(),
    ("GET", "/docs/oauth2-redirect"): Route(),
    ("GET", "/redoc"): Route(),
    ("GET", "/v1/models"): Route(),
    ("GET", "/v1/models/{model}"): Route(),
    ("GET", "/tokenizer_info"): Route(),
    ("POST", "/tokenize"): Route(request={"json": {"text": "a"}}),
    ("POST", "/detokenize"): Route(request={"json": {"tokens": [1]}}),
    ("POST", "/v1/chat/completions"): Route(request=CHAT),
    ("POST", "/v1/completions"): Route(request=COMPLETION),
    ("POST", "/v1/responses"): Route(request=RESPONSE),
    # Whose a response is, is told by its id, and tried where there is one.
    ("GET", "/v1/responses/{response_id}"): Route(),
    ("DELETE", "/v1/responses/{response_id}"): Route(),
    ("POST", "/v1/responses/{response_id}/cancel"): Route(),
    ("GET", "/v1/responses/{response_id}/input_items"): Route(),
    ("POST", "/v1/conversations"): Route(request={"json": {}}),
    ("GET", "/v1/conversations/{conversation_id}"): Route(),
    ("POST", "/v1/conversations/{conversation_id}"): Route(request={"json": {"metadata": {"a": "b"}}}),
    ("DELETE", "/v1/conversations/{conversation_id}"): Route(),
    ("POST", "/v1/conversations/{conversation_id}/items"): Route(request=ITEMS),
    ("GET", "/v1/conversations/{conversation_id}/items"): Route(elsewhere="unsupported_operation"),
    ("GET", "/v1/conversations/{conversation_id}/items/{item_id}"): Route(elsewhere="unsupported_operation"),
    ("DELETE", "/v1/conversations/{conversation_id}/items/{item_id}"): Route(elsewhere="unsupported_operation"),
    ("GET", "/v1/sessions"): Route(),
    ("POST", "/v1/sessions"): Route(request={"json": {"from": {"session_id": "{session_id}"}}}),
    ("POST", "/v1/sessions/import"): Route(request={"content": b"no snapshot"}),
    ("GET", "/v1/sessions/{session_id}"): Route(),
    ("DELETE", "/v1/sessions/{session_id}"): Route(),
    ("GET", "/v1/sessions/{session_id}/memory"): Route(),
    ("GET", "/v1/sessions/{session_id}/export"): Route(),
    ("GET", "/v1/sessions/{session_id}/versions"): Route(),
    ("POST", "/v1/sessions/{session_id}/versions"): Route(request={"json": {"name": "n"}}),
    ("DELETE", "/v1/sessions/{session_id}/versions/{name}"): Route(),
    ("POST", "/v1/sessions/{session_id}/rewind"): Route(request={"json": {"version": 1}}),
    ("POST", "/v1/sessions/{session_id}/fork"): Route(request={"json": {}}),
    ("POST", "/v1/sessions/{session_id}/replay"): Route(),
    ("POST", "/v1/sessions/{session_id}/ingest"): Route(
        request={"content": b"text", "params": {"offset": 7}}, elsewhere="ingest_offset"
    ),
}
NAMES = re.compile("{session_id}|{conversation_id}")
SESSION_ROUTES = [name for name, route in ROUTES.items() if NAMES.search(f"{name[1]}{route.request}")]
# Who holds what; the digest of each key is in the server's file.
HOLDERS = {
    "user-key": ("acme", {Scope.USER}),
    "metrics-key": ("acme", {Scope.METRICS}),
    "admin-key": ("acme", {Scope.ADMIN}),
    "other-tenants-key": ("globex", {Scope.USER, Scope.METRICS}),
}


def secret(holder: str) -> str:
    return holder.ljust(40, "-")


@pytest.fixture(scope="module")
def guarded(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedServer]:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys = [Key(key_digest(secret(name).encode()), *holder) for name, holder in HOLDERS.items()]  # type: ignore[arg-type]
    path.write_text("".join(f"{keys_file_line(key)}\n" for key in keys))
    path.chmod(0o600)
    with serving(model, api_keys_file=str(path), token_log="1") as running:
        with client_of(running, "user-key") as client:
            ask(client, "a", session_id=MINE).raise_for_status()
        yield running


def client_of(server: ThreadedServer, holder: str | None) -> httpx.Client:
    headers = {} if holder is None else {"Authorization": f"Bearer {secret(holder)}"}
    return httpx.Client(base_url=server.base_url, headers=headers, timeout=60)


def named(value: Any, session_id: str) -> Any:
    """`value` with the session in the place of its parameter."""
    if isinstance(value, str):
        return NAMES.sub(session_id, value)
    if isinstance(value, dict):
        return {key: named(item, session_id) for key, item in value.items()}
    return [named(item, session_id) for item in value] if isinstance(value, list) else value


def send(client: httpx.Client, name: tuple[str, str], session_id: str) -> httpx.Response:
    method, path = name
    return client.request(method, named(path, session_id), **named(ROUTES[name].request, session_id))


def test_every_route_has_its_line_in_the_table() -> None:
    app = create_app(Runtime(ServerConfig.build([], {}), on_fatal=print))
    served = set()
    for route in iter_route_contexts(app.routes):
        assert route.methods, f"{route.path} is no plain route: who may use it?"
        served |= {(method, route.path) for method in route.methods if method != "HEAD"}
    assert served == set(ROUTES)


@pytest.mark.parametrize("name", ROUTES, ids=" ".join)
def test_without_a_known_key_a_route_is_a_401_unless_it_is_open(guarded: ThreadedServer, name: tuple[str, str]) -> None:
    for holder in (None, "nobodys-key"):
        with client_of(guarded, holder) as client:
            response = send(client, name, MINE)
        if ROUTES[name].opens_to == OPEN:
            assert response.status_code == 200
        else:
            assert_refused(response, 401, "invalid_api_key")


@pytest.mark.parametrize("name", ROUTES, ids=" ".join)
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_key_opens_what_its_scopes_say_and_nothing_else(
    guarded: ThreadedServer, name: tuple[str, str], holder: str
) -> None:
    scopes = HOLDERS[holder][1]
    with client_of(guarded, holder) as client:
        response = send(client, name, ABSENT)
    if ROUTES[name].opens_to == OPEN or Scope.ADMIN in scopes or ROUTES[name].opens_to in scopes:
        assert response.status_code not in (401, 403), response.text
        assert response.status_code < 500
    else:
        assert_refused(response, 403, "forbidden")


@pytest.mark.parametrize("name", SESSION_ROUTES, ids=" ".join)
def test_another_tenants_session_is_to_every_route_like_an_absent_one(
    guarded: ThreadedServer, name: tuple[str, str]
) -> None:
    with client_of(guarded, "other-tenants-key") as client:
        theirs, absent = send(client, name, MINE), send(client, name, ABSENT)
    assert theirs.json()["error"]["code"] == ROUTES[name].elsewhere
    assert theirs.status_code == absent.status_code
    assert theirs.content == absent.content.replace(ABSENT.encode(), MINE.encode())
    with client_of(guarded, "user-key") as client:
        assert client.get(f"/v1/sessions/{MINE}").json()["version"] == 1

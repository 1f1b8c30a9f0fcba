"""The OpenAPI document: valid, whole, and true of the server that gives it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from server.app import create_app
from server.config import ServerConfig
from server.errors import statuses_by_code
from server.openapi import operations
from server.runtime import Runtime
from tests.server.harness import ask, new_name, serving

DOCUMENT: dict[str, Any] = create_app(Runtime(ServerConfig.build([], {}), on_fatal=print)).openapi()
OPERATIONS = {f"{method.upper()} {path}": operation for path, method, operation in operations(DOCUMENT)}
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
ERROR = {"$ref": "#/components/schemas/Error"}
JSON = "application/json"


def body_examples() -> list[tuple[str, dict[str, Any]]]:
    """Operations with the examples of their JSON bodies."""
    found = []
    for name, operation in OPERATIONS.items():
        if JSON in operation.get("requestBody", {}).get("content", {}):
            reference = operation["requestBody"]["content"][JSON]["schema"]["$ref"]
            found += [(name, example) for example in SCHEMAS[reference.rpartition("/")[2]]["examples"]]
    return found


def header_cases() -> list[tuple[str, str, bool]]:
    """Every operation with a body or an effect, every header, and whether it is documented there."""
    return [
        (name, header, header in {parameter["name"] for parameter in operation["parameters"]})
        for name, operation in OPERATIONS.items()
        if name.startswith("POST")
        for header in ("Idempotency-Key", "If-Match")
    ]


@pytest.fixture(scope="module")
def http(model: Path) -> Iterator[httpx.Client]:
    """Of a server with a session `demo` that has read one turn."""
    with serving(model, token_log="1") as server, httpx.Client(base_url=server.base_url, timeout=60) as client:
        ask(client, "Mary went to the garden.", session_id="demo").raise_for_status()
        yield client


def path_for(http: httpx.Client, name: str) -> str:
    """The operation's path, with things in it that exist."""
    path = name.partition(" ")[2]
    if "{session_id}" in path:
        session_id = new_name("documented")
        ask(http, "Mary went to the garden.", session_id=session_id).raise_for_status()
        path = path.replace("{session_id}", session_id)
    if "{conversation_id}" in path:
        path = path.replace("{conversation_id}", http.post("/v1/conversations", json={}).json()["id"])
    if "{response_id}" in path:
        path = path.replace(
            "{response_id}", http.post("/v1/responses", json={"input": "a", "max_output_tokens": 1}).json()["id"]
        )
    return path


def test_the_document_is_valid_and_is_what_the_server_gives(http: httpx.Client) -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert http.get("/openapi.json").json() == DOCUMENT


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_says_what_it_does_and_where_it_belongs(name: str) -> None:
    operation = OPERATIONS[name]
    assert operation["summary"]
    assert operation["description"]
    assert operation["tags"][0] in {tag["name"] for tag in DOCUMENT["tags"]}
    in_path = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
    assert in_path == set(re.findall(r"\{(\w+)\}", name))
    assert operation.get("security") == ([] if name in ("GET /health", "GET /ready") else None)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_documented_refusal_has_the_one_shape_and_names_the_codes_that_there_are(name: str) -> None:
    for status, response in OPERATIONS[name]["responses"].items():
        if status == "200":
            continue
        content = response["content"][JSON]
        assert content["schema"] == ERROR
        told = set(re.findall(r"`(\w+)`", response["description"].partition("Codes: ")[2]))
        assert told == {code for code, its in statuses_by_code().items() if its == int(status)}
        assert content["example"]["error"]["code"] in told


def test_every_code_is_documented_somewhere() -> None:
    """But for the methods that a path does not have, which are no operations."""
    documented = {int(status) for operation in OPERATIONS.values() for status in operation["responses"]}
    assert set(statuses_by_code().values()) - documented == {405}
    assert SCHEMAS["Error"]["properties"]["error"]["properties"]["code"]["enum"] == sorted(statuses_by_code())


def test_every_json_body_has_an_example() -> None:
    bodies = {name for name, each in OPERATIONS.items() if JSON in each.get("requestBody", {}).get("content", {})}
    assert {name for name, _ in body_examples()} == bodies


@pytest.mark.parametrize(("name", "example"), body_examples())
def test_the_server_takes_every_example(http: httpx.Client, name: str, example: dict[str, Any]) -> None:
    body = example | ({"model": "atlas-tiny"} if "model" in example else {})
    answer = http.post(path_for(http, name), json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].partition(";")[0] in OPERATIONS[name]["responses"]["200"]["content"]
    assert '"error"' not in answer.text or '"error":null' in answer.text


@pytest.mark.parametrize(("name", "header", "is_documented"), header_cases())
def test_a_header_is_documented_where_it_is_read(
    http: httpx.Client, name: str, header: str, is_documented: bool
) -> None:
    bodies = dict(body_examples())
    body = {key: value for key, value in bodies.get(name, {}).items() if key != "model"}
    if name == "POST /v1/sessions":
        body = {"id": new_name("documented")}
    sent = {"content": b"no snapshot"} if name.endswith("/import") else {"json": body} if body else {}
    answer = http.post(path_for(http, name), headers={header: "two words"}, **sent)
    is_read = answer.status_code == 400 and answer.json()["error"]["param"] == header
    assert is_read == is_documented, answer.text


def test_what_answers_with_something_else_than_json_says_so(http: httpx.Client) -> None:
    for name in ("GET /metrics", "GET /v1/sessions/{session_id}/export", "GET /v1/models", "GET /health"):
        answer = http.get(path_for(http, name))
        assert answer.headers["content-type"].partition(";")[0] in OPERATIONS[name]["responses"]["200"]["content"]
    for name in ("POST /v1/sessions/{session_id}/ingest", "POST /v1/sessions/{session_id}/replay"):
        answer = http.post(path_for(http, name), content=b"a", headers={"Accept": "text/event-stream"})
        assert answer.headers["content-type"] == "text/event-stream"
        assert "text/event-stream" in OPERATIONS[name]["responses"]["200"]["content"]

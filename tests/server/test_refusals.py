"""What is wrong with a request is said in one shape, by name, before anything is learned; the input is not echoed."""

import json
import socket
from typing import Any

import httpx
import pytest

from tests.server.harness import ThreadedServer, ask, assert_refused, raw_answer, session_of, user

JSON = {"Content-Type": "application/json"}
SECRET = "xyzzy-secret"

UNSUPPORTED: list[tuple[str, Any]] = [
    ("tools", [{"type": "function"}]),
    ("tool_choice", "required"),
    ("functions", [{}]),
    ("function_call", {"name": "f"}),
    ("audio", {}),
    ("modalities", ["text", "audio"]),
    ("response_format", {"type": "json_object"}),
    ("reasoning_effort", "high"),
    ("store", True),
    ("best_of", 2),
    ("guided_json", {}),
    ("echo", True),
    ("suffix", "x"),
]
NEUTRAL: dict[str, Any] = {
    "n": 1,
    "logprobs": False,
    "top_logprobs": 0,
    "logit_bias": {},
    "presence_penalty": 0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_p": 0,
    "tools": [],
    "tool_choice": "auto",
    "functions": None,
    "modalities": ["text"],
    "response_format": {"type": "text"},
    "store": False,
    "parallel_tool_calls": True,
    "history": "auto",
    "on_divergence": "error",
    "read_only": False,
}


@pytest.mark.parametrize(("name", "value"), UNSUPPORTED)
def test_a_parameter_that_is_known_and_not_served_is_refused_by_name(
    client: httpx.Client, name: str, value: Any
) -> None:
    response = ask(client, "Hi", **{name: value})
    assert_refused(response, 400, "unsupported_parameter", name)
    assert name in response.json()["error"]["message"]


def test_a_known_parameter_that_asks_for_nothing_is_fine(client: httpx.Client) -> None:
    response = ask(client, "Hi", **NEUTRAL)
    assert response.status_code == 200, response.text
    assert "x-ignored-parameters" not in response.headers


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages[0].role"),
        ({"role": "user", "content": "x", "name": "bob"}, "messages[0].name"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[0].tool_calls"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[0].content[0].type"),
    ],
)
def test_messages_that_are_more_than_text_are_refused_by_name(
    client: httpx.Client, message: dict[str, Any], param: str
) -> None:
    assert_refused(ask(client, "", messages=[message]), 400, "unsupported_parameter", param)


@pytest.mark.parametrize("name", ["sesion_id", "session_ids", "histroy", "readonly", "read_onli", "on_divergense"])
def test_what_looks_like_a_misspelt_extension_is_not_dropped(client: httpx.Client, name: str) -> None:
    fields: dict[str, Any] = {name: "x"}
    assert_refused(ask(client, "Hi", **fields), 400, "invalid_request", name)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "king", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [user("a"), {"role": "assistant", "content": "b"}]}, "messages"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 10**400}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_completion_tokens": 10**9, "max_tokens": None}, "max_completion_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"n": 1.5}, "n"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"min_p": 1.1}, "min_p"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 10**400}, "repetition_penalty"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"5": "much"}}, "logit_bias"),
        ({"logit_bias": {"-5": 1}}, "logit_bias"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"5\n": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 1, "05": 2}}, "logit_bias"),
        ({"logit_bias": {"9" * 9: 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 9: 1}, "n": 2}, "logit_bias"),
        ({"logit_bias": {str(number): 1 for number in range(2000)}}, "logit_bias"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [10**400]}, "stop_token_ids"),
        ({"stop_token_ids": list(range(65))}, "stop_token_ids"),
        ({"seed": 2**70}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": 3}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"history": "all"}, "history"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"user": ["x"]}, "user"),
        ({"read_only": True}, "read_only"),
        ({"history": "match"}, "history"),
        ({"on_divergence": "rewind"}, "on_divergence"),
        ({"on_divergence": "forget"}, "on_divergence"),
        ({"session_id": ""}, "session_id"),
        ({"session_id": "a b"}, "session_id"),
        ({"session_id": "a\n"}, "session_id"),
        ({"session_id": "x" * 5000}, "session_id"),
        ({"session_id": 7}, "session_id"),
    ],
)
def test_a_value_out_of_range_is_refused_by_the_fields_name(
    client: httpx.Client, fields: dict[str, Any], param: str
) -> None:
    assert_refused(ask(client, "Hi", **fields), 400, "invalid_request", param)


@pytest.mark.parametrize("messages", [[], [user("")], [user("a"), {"role": "assistant"}, user("")]])
def test_an_empty_prompt_is_refused_and_the_session_unharmed(
    client: httpx.Client, session_id: str, messages: list[Any]
) -> None:
    ask(client, "a", session_id=session_id)
    before = session_of(client, session_id)
    assert_refused(ask(client, "", session_id=session_id, messages=messages), 400, "empty_prompt", "messages")
    assert session_of(client, session_id) == before


@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_turn_of_a_session_leaves_it_as_it_was(client: httpx.Client, session_id: str, stream: bool) -> None:
    ask(client, "a", session_id=session_id)
    before = session_of(client, session_id)
    for fields in ({"best_of": 2}, {"n": 17}, {"temperature": -1}, {"sesion_id": "x"}, {"history": "match"}):
        response = ask(client, "b", session_id=session_id, stream=stream, **fields)
        assert response.status_code in (400, 409)
        assert response.headers["content-type"] == "application/json"
    assert session_of(client, session_id) == before


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "invalid_request"),
        (b"{", "invalid_request"),
        (b"[]", "invalid_request"),
        (b"null", "invalid_request"),
        (b'{"messages": [], "temperature": NaN}', "invalid_request"),
        (b'{"messages": [], "temperature": Infinity}', "invalid_request"),
        (b'{"messages": [], "temperature": -Infinity}', "invalid_request"),
        (b'{"messages": [], "temperature": 1e999}', "invalid_request"),
        (b'{"seed": ' + b"9" * 10_000 + b"}", "invalid_request"),
        (b'{"x": ' + b"[" * 100_000, "invalid_request"),
        (b'{"x": ' + b"[" * 1001 + b"]" * 1001 + b"}", "invalid_request"),
        (b'{"x": ' + b'{"y":' * 5000 + b"1" + b"}" * 5001, "invalid_request"),
        (b'{"messages": [], "messages": []}', "invalid_request"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "invalid_unicode"),
        (b'{"\\udfff": 1}', "invalid_unicode"),
        (b'{"messages": "\xff"}', "invalid_unicode"),
        (b'{"messages": "\xed\xa0\x80"}', "invalid_unicode"),
        (b'{"messages": "a\x00b"}', "invalid_request"),
        (b"\x00", "invalid_request"),
    ],
)
def test_a_body_that_is_not_strict_json_is_a_400_of_the_same_shape(client: httpx.Client, raw: bytes, code: str) -> None:
    assert_refused(client.post("/v1/chat/completions", content=raw, headers=JSON), 400, code)


def test_the_input_is_not_echoed(client: httpx.Client) -> None:
    for body in (
        {"messages": SECRET},
        {"messages": [{"role": SECRET, "content": "x"}]},
        {"messages": [user("x")], "temperature": SECRET},
        {"messages": [user("x")], "metadata": {SECRET: 1}},
        {"messages": [user("x")], "session_id": SECRET + "\r\nX-Injected: 1"},
        {"messages": [user("x")], "model": SECRET},
        {"messages": [user("x")], "response_format": {"type": SECRET}},
    ):
        response = client.post("/v1/chat/completions", json=body)
        assert response.status_code >= 400
        assert SECRET not in response.text
        assert "x-injected" not in response.headers
    assert SECRET not in client.post("/v1/chat/completions", content=f'{{"{SECRET}'.encode(), headers=JSON).text


def test_a_body_over_the_limit_is_refused_before_it_is_read(server: ThreadedServer, client: httpx.Client) -> None:
    limit = server.config.max_body_bytes
    declared = client.post("/v1/chat/completions", content=b" " * (limit + 1), headers=JSON)
    assert_refused(declared, 413, "body_too_large")
    # Declared only: a gigabyte that is never sent.
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000000000\r\n\r\n"
        )
        assert b" 413 " in connection.recv(1000)
    chunked = client.post("/v1/chat/completions", content=iter([b" " * 60_000] * 5), headers=JSON)
    assert_refused(chunked, 413, "body_too_large")
    just = client.post("/v1/chat/completions", content=b" " * limit, headers=JSON)
    assert_refused(just, 400, "invalid_request")


def test_other_types_of_body_are_a_415(client: httpx.Client) -> None:
    body = json.dumps({"messages": [user("Hi")], "max_tokens": 1}).encode()
    for headers in (
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {},
        {**JSON, "Content-Encoding": "gzip"},
        {"Content-Type": "application/json; charset=utf-16"},
    ):
        response = client.post("/v1/chat/completions", content=body, headers=headers)
        assert_refused(response, 415, "unsupported_media_type")
    response = client.post(
        "/v1/chat/completions", content=body, headers={"Content-Type": "application/json;charset=UTF-8"}
    )
    assert response.status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/chat", "/v1/sessions/a/b/c", "/v1/sessions/", "/v1/sessions/a/ingest/", "/openapi"]
)
def test_an_unknown_path_is_a_404_of_the_same_shape(client: httpx.Client, path: str) -> None:
    assert_refused(client.get(path), 404, "not_found")


def test_an_encoded_slash_is_no_slash(client: httpx.Client, session_id: str) -> None:
    ask(client, "a", session_id=session_id)
    client.post(f"/v1/sessions/{session_id}/versions", json={"name": "n"})
    assert_refused(client.get(f"/v1%2Fsessions%2F{session_id}"), 404, "not_found")
    assert_refused(client.delete(f"/v1/sessions/{session_id}/versions%2Fn"), 404, "not_found")
    assert_refused(client.get(f"/v1/sessions/{session_id}%2Fversions"), 400, "invalid_request", "session_id")


def test_another_method_is_a_405_that_names_the_right_ones(client: httpx.Client) -> None:
    response = client.get("/v1/chat/completions")
    assert_refused(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    assert client.put("/v1/sessions/a").headers["allow"] == "DELETE, GET"


def test_another_model_is_a_404(client: httpx.Client) -> None:
    assert_refused(ask(client, "Hi", model="gpt-4"), 404, "model_not_found")
    assert ask(client, "Hi", model="atlas-tiny").status_code == 200
    assert ask(client, "Hi", model=None).status_code == 200


@pytest.mark.parametrize(
    "encoded",
    [
        "a%0A",
        "%0Aa",
        "a%0D%0AX-Injected:%201",
        "a%00",
        "a%20b",
        "%7Ba%7D",
        "a%25",
        "%E2%80%AEa",
        "%FF",
        "a" * 129,
        "a%2Fb",
    ],
)
def test_a_session_id_is_a_full_match_of_the_decoded_value(client: httpx.Client, encoded: str) -> None:
    for response in (
        client.get(f"/v1/sessions/{encoded}"),
        client.delete(f"/v1/sessions/{encoded}"),
        client.post(f"/v1/sessions/{encoded}/ingest", content=b"text"),
        client.get(f"/v1/sessions/{encoded}/versions"),
        client.get(f"/v1/sessions/{encoded}/export"),
        client.post(f"/v1/sessions/{encoded}/rewind", json={"version": 0}),
        client.post(f"/v1/sessions/{encoded}/fork", json={}),
    ):
        if encoded == "a%2Fb":
            assert response.status_code in (400, 404, 405)
            continue
        assert_refused(response, 400, "invalid_request", "session_id")
        assert "x-injected" not in response.headers


def test_a_decoded_id_is_the_same_session(client: httpx.Client) -> None:
    ask(client, "a", session_id="per:cent-1")
    assert session_of(client, "per%3Acent%2D1")["id"] == "per:cent-1"


def test_a_body_of_two_lengths_is_refused(server: ThreadedServer) -> None:
    answer = raw_answer(
        server.port,
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_a_request_id_is_given_back_when_it_is_one(client: httpx.Client) -> None:
    assert client.get("/health", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    given = client.get("/health", headers={"X-Request-Id": "not mine"}).headers["x-request-id"]
    assert given != "not mine"
    assert len(given) == 32

"""What stands around the sessions: the model, its tokens, the documentation, and slow clients."""

import re
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.names import is_within
from server.parameters import CHAT
from server.parameters.known import EXTENSIONS, KNOWN
from tests.server.harness import (
    ThreadedServer,
    ask,
    assert_refused,
    read_until,
    serving,
    user,
)


def test_the_model_is_named_and_has_no_end_of_context(client: httpx.Client, server: ThreadedServer) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == model["root"] == "atlas-tiny"
    assert model["max_model_len"] is None
    assert model["num_parameters"] == server.runtime.serving().checkpoint.model.num_parameters
    ask(client, "a", session_id="size-of-a-session")
    stored = client.get("/v1/sessions/size-of-a-session").json()["bytes"]
    assert model["session_bytes"] <= stored <= model["session_bytes"] + 20_000


@pytest.mark.parametrize("text", ["Hello, you\n", "", "Ünï 😀", "▁ <bos> ▁"])
def test_tokens_are_the_text_and_back(client: httpx.Client, text: str) -> None:
    answer = client.post("/tokenize", json={"text": text}).json()
    assert answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] is None
    there_again = client.post("/detokenize", json={"tokens": answer["tokens"], "model": "atlas-tiny"}).json()
    assert there_again == {"text": text, "prompt": text}


def test_tokens_that_do_not_exist_are_refused(client: httpx.Client) -> None:
    for tokens in ([-1], [10**9]):
        assert_refused(client.post("/detokenize", json={"tokens": tokens}), 400, "invalid_request", "tokens")
    for body in ({"tokens": ["a"]}, {"tokens": [1.5]}, {"text": "x"}):
        response = client.post("/detokenize", json=body)
        assert response.status_code == 400
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("text", {}),
        ("text", {"text": "x", "prompt": "x"}),
        ("text", {"text": None}),
        ("add_special_tokens", {"messages": [user("x")], "add_special_tokens": True}),
        ("add_generation_prompt", {"prompt": "x", "add_generation_prompt": True}),
        ("tokens", {"text": "x", "tokens": [1]}),
    ]
    for name, asked in wrong:
        assert_refused(client.post("/tokenize", json=asked), 400, "invalid_request", name)
    assert_refused(client.post("/tokenize", json={"text": "x", "model": "y"}), 404, "model_not_found")


def test_a_prompt_and_messages_are_tokens_as_they_are_read_at_the_beginning_of_a_session(
    server: ThreadedServer, client: httpx.Client
) -> None:
    checkpoint = server.runtime.serving().checkpoint
    special, text = checkpoint.tokenizer.special, "Hello, you"
    own = checkpoint.tokenizer.encode(text)

    def tokens(**body: object) -> list[int]:
        answer = client.post("/tokenize", json={"model": "atlas-tiny", **body}).json()
        assert answer["count"] == len(answer["tokens"])
        ids: list[int] = answer["tokens"]
        return ids

    assert tokens(prompt=text) == [special.bos, *own] == tokens(text=text, add_special_tokens=True)
    assert tokens(prompt=text, add_special_tokens=False) == own == tokens(text=text)
    messages = [{"role": "system", "content": "Be brief."}, user("Hi")]
    framed = tokens(messages=messages)
    assert framed == [*tokens(messages=messages, add_generation_prompt=False), special.assistant]
    chat = client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1}).json()
    assert len(framed) == chat["usage"]["prompt_tokens"]
    named = client.post("/tokenize", json={"prompt": "Hi 😀", "return_token_strs": True}).json()
    assert named["token_strs"][0] == "<bos>"
    assert len(named["token_strs"]) == named["count"]


def test_tokens_are_asked_for_in_the_words_of_vllms_clients_too(client: httpx.Client) -> None:
    ours = client.post("/tokenize", json={"text": "Hello"}).json()
    asked = {"prompt": "Hello", "model": "atlas-tiny", "add_special_tokens": False}
    assert client.post("/tokenize", json=asked).json() == ours
    info = client.get("/tokenizer_info").json()
    whole = client.post("/tokenize", json={"prompt": "Hello", "add_special_tokens": True}).json()
    assert whole["tokens"] == [info["bos_token_id"], *ours["tokens"]]
    assert whole["count"] == ours["count"] + 1
    assert info["vocab_size"] > max(whole["tokens"])
    for path, body in (("/tokenize", {"text": "x"}), ("/detokenize", {"tokens": [1]})):
        assert_refused(client.post(path, json={**body, "model": "another"}), 404, "model_not_found")


def test_the_documentation_has_every_field_that_is_served(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v1/chat/completions"]["post"]
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rpartition("/")[2]]
    assert set(schema["properties"]) == CHAT.served
    nested = re.findall(r"#/components/schemas/(\w+)", str(document))
    assert set(nested) <= set(document["components"]["schemas"])
    assert client.get("/docs").status_code == 200


def test_no_extension_looks_like_another_field() -> None:
    others = (CHAT.served | KNOWN.keys()) - set(EXTENSIONS)
    assert not [name for name in others if any(is_within(name, extension, 2) for extension in EXTENSIONS)]


@pytest.mark.parametrize(
    ("left", "right", "distance"),
    [("", "", 0), ("abc", "abc", 0), ("abc", "acb", 2), ("abc", "ab", 1), ("abc", "xabcx", 2), ("abc", "xyz", 3)],
)
def test_letters_apart_are_counted(left: str, right: str, distance: int) -> None:
    assert is_within(left, right, distance)
    assert distance == 0 or not is_within(left, right, distance - 1)


def test_a_body_that_stands_still_is_dropped_and_its_session_free(model: Path) -> None:
    with serving(model, body_timeout_seconds="0.3") as server:
        for head in (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n",
            b"POST /v1/sessions/s/ingest HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n",
        ):
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
                connection.sendall(head + b"Content-Length: 50\r\n\r\n{")
                answer = read_until(connection, b"}}")
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b'"code":"timeout"' in answer
        with httpx.Client(base_url=server.base_url, timeout=60) as client:
            assert ask(client, "a", session_id="s").status_code == 200


def test_a_full_queue_is_a_429_that_says_when_to_come_back(model: Path) -> None:
    endless = {"messages": [user("a")], "max_tokens": 30_000, "ignore_eos": True, "stream": True}
    with (
        serving(model, max_num_sequences="1", max_num_waiting="0") as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
        client.stream("POST", "/v1/chat/completions", json=endless) as running,
    ):
        lines = running.iter_lines()
        next(lines)
        refused = ask(client, "b")
        assert_refused(refused, 429, "queue_full")
        assert refused.headers["retry-after"] == "1"


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_a_load_balancer_may_ask_by_head(client: httpx.Client, path: str) -> None:
    response = client.head(path)
    assert response.status_code == 200
    assert response.content == b""
    assert client.delete(path).headers["Allow"] == "GET, HEAD"

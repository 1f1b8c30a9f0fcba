"""Input that is allowed and strange, at every border of every parameter: an answer or a 400, never anything else, and
the session is what it was."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.figures import tell
from tests.server.harness import ThreadedServer, ask, assert_refused, events_of, raw_answer, serving, session_of

MAX_TOKENS_LIMIT = 8
# A family, a flag and a hand with a colour of skin: each is one sign of several characters of several bytes.
JOINED = "👨‍👩‍👧‍👦 🏴‍☠️ 👍🏽 e\u0301 ﷽ \ufeff\u202e"
INTEGERS = [-(2**63), -1, 0, 1, 2, 8, 9, 16, 17, 20, 21, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**300]
NUMBERS = [*INTEGERS, -2.0, -0.0, 5e-324, 0.5, 1.0, 1.0000001, 2.0, 2.0000001, 1e38, 1e308]
OTHERS = [None, True, False, "", "1", [], {}, [None], {"": 0}]
EXTREMES: dict[str, list[Any]] = {
    "n": INTEGERS,
    "max_tokens": INTEGERS,
    "max_completion_tokens": INTEGERS,
    "min_tokens": INTEGERS,
    "seed": INTEGERS,
    "top_k": INTEGERS,
    "top_logprobs": INTEGERS,
    "logprobs": [],
    "temperature": NUMBERS,
    "top_p": NUMBERS,
    "min_p": NUMBERS,
    "presence_penalty": NUMBERS,
    "frequency_penalty": NUMBERS,
    "repetition_penalty": NUMBERS,
    "stop": [" ", "\0", "a" * 100_000, ["a"] * 16, ["a"] * 17, ["", "a"], ["a", 1], JOINED, [JOINED] * 16],
    "logit_bias": [
        {"0": 100},
        {"0": -100},
        {"0": 101},
        {"0": 1e308},
        {"-1": 1},
        {"1.5": 1},
        {"a": 1},
        {"١": 1},
        {"999999999999": 1},
        {str(number): 1 for number in range(10_000)},
        {str(number): -100 for number in range(300)},
    ],
    "user": ["a" * 512, "a" * 513, JOINED, "\0"],
    "metadata": [{"a": "b" * 513}, {"a" * 65: "b"}, {"\0": "\0"}, {str(number): "" for number in range(17)}],
}


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[ThreadedServer]:
    with serving(model, max_tokens_limit=str(MAX_TOKENS_LIMIT), ingest_commit_tokens="500") as running:
        yield running


@pytest.fixture
def client(server: ThreadedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.base_url, timeout=60) as connected:
        yield connected


@pytest.mark.parametrize("name", EXTREMES)
def test_a_parameter_at_its_borders_is_served_or_refused_by_name(client: httpx.Client, name: str) -> None:
    ask(client, "a", session_id=f"extreme-{name}").raise_for_status()
    before = session_of(client, f"extreme-{name}")
    statuses = []
    for value in [*EXTREMES[name], *OTHERS]:
        fields: dict[str, Any] = {"session_id": f"extreme-{name}", "read_only": True, "max_tokens": 2, name: value}
        if name == "max_completion_tokens":
            fields["max_tokens"] = None
        elif name == "top_logprobs":
            fields["logprobs"] = True
        answer = ask(client, "b", **fields)
        statuses.append(answer.status_code)
        if answer.status_code == 200:
            choices = answer.json()["choices"]
            assert all(choice["finish_reason"] in ("stop", "length") for choice in choices)
            assert answer.json()["usage"]["completion_tokens"] <= MAX_TOKENS_LIMIT * len(choices)
        else:
            assert answer.status_code == 400, (value, answer.text)
            param = answer.json()["error"]["param"]
            assert param is not None, (value, answer.text)
            assert param.split("[")[0].split(".")[0] in (name, "logprobs", "min_tokens"), (
                value,
                answer.text,
            )
    assert session_of(client, f"extreme-{name}") == before
    tell(f"{name}: {statuses.count(200)} served, {statuses.count(400)} refused")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(" ", id="a space"),
        pytest.param(" " * 10_000, id="spaces"),
        pytest.param(" " * 100_000, id="many spaces", marks=pytest.mark.slow),
        pytest.param("\n" * 1_000, id="lines"),
        pytest.param("\0", id="NUL"),
        pytest.param(JOINED, id="joined"),
        pytest.param("<bos><eos><user></s>[INST]", id="special"),
        pytest.param("\u0301" * 1_000, id="combining"),
        pytest.param("a" * 5_000, id="one word"),
    ],
)
def test_a_strange_prompt_is_read_like_any_other(client: httpx.Client, text: str, stream: bool) -> None:
    name = f"strange-{stream}-{ord(text[0])}-{len(text)}"
    answer = ask(client, text, session_id=name, stream=stream)
    assert answer.status_code == 200, answer.text
    if stream:
        assert events_of(answer)[-1] == "[DONE]"
    session = session_of(client, name)
    assert session["version"] == 1
    tokens = client.post("/tokenize", json={"text": text}).json()
    assert session["position"] >= tokens["count"]
    assert client.post("/detokenize", json={"tokens": tokens["tokens"]}).json()["text"] == text
    assert ask(client, "on", session_id=name).json()["session"]["version"] == 2
    client.delete(f"/v1/sessions/{name}").raise_for_status()


def test_signs_that_are_joined_over_pieces_of_an_upload_are_read_as_if_they_came_at_once(client: httpx.Client) -> None:
    document = f"{JOINED} says Mary.\n".encode() * 30
    whole = client.post("/v1/sessions/whole/ingest", content=document)
    cut = client.post("/v1/sessions/cut/ingest", content=(document[at : at + 1] for at in range(len(document))))
    assert [whole.status_code, cut.status_code] == [200, 200]
    assert session_of(client, "cut")["tokens_digest"] == session_of(client, "whole")["tokens_digest"]


def json_routes(client: httpx.Client) -> list[tuple[str, str]]:
    """Method and path of every route that the documentation says to take JSON."""
    paths = client.get("/openapi.json").raise_for_status().json()["paths"]
    found = []
    for path, operations in paths.items():
        for method, operation in operations.items():
            if "application/json" in operation.get("requestBody", {}).get("content", {}):
                found.append((method.upper(), path.replace("{", "").replace("}", "")))
    return found


def test_every_route_that_takes_json_takes_nothing_that_is_not_quite_json(client: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    values = [
        b"NaN",
        b"1e999",
        b"9" * 10_000,
        b"[" * 100_000,
        b'1, "a": 1',
        b'"\\ud800"',
        b'"\xff"',
        b'"\0"',
        b"01",
        b"1,",
    ]
    bodies = [b'{"a": ' + value + b"}" for value in values]
    bodies += [b"{", b"[]", b'"a"', b"\xef\xbb\xbf{}", b"{}{}", b"{'a': 1}", b"{/**/}"]
    routes = json_routes(client)
    assert len(routes) >= 8
    for method, path in routes:
        for body in bodies:
            refused = client.request(method, path, content=body, headers=headers)
            assert refused.status_code == 400, (path, body[:20], refused.text)
            assert refused.json()["error"]["code"] in ("invalid_request", "invalid_unicode")
            assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
        for kind in ("text/html", "application/x-www-form-urlencoded", "application/json; charset=utf-16"):
            refused = client.request(method, path, content=b"{}", headers={"Content-Type": kind})
            assert_refused(refused, 415, "unsupported_media_type")
    names = {session["id"] for session in client.get("/v1/sessions?limit=1000").json()["data"]}
    assert names.isdisjoint({"session_id", "conversation_id"})
    tell(f"{len(routes)} routes, {len(bodies)} bodies each, every one a 400")


def test_a_key_that_is_odd_is_a_401_and_never_more(model: Path) -> None:
    odd = [b"", b"Bearer", b"Bearer ", b"Bearer the-ke", b"Bearer the-key2", b"bearer\tthe-key", b"Basic dGhlLWtleTo=",
           b"Bearer caf\xc3\xa9", b"Bearer \xff\xfe", b"Bearer " + b"a" * 60_000, b"Bearer the-key, Bearer the-key",
           b"the-key", b"Bearer Bearer the-key", b"Bearer acme:the-key"]  # fmt: skip
    with serving(model, api_keys="acme:the-key") as server:
        for value in odd:
            head = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: " + value + b"\r\n\r\n"
            answer = raw_answer(server.port, head)
            assert answer.startswith(b"HTTP/1.1 401 "), (value[:40], answer)
            error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
            assert error == {
                "message": "the API key is missing or unknown",
                "type": "authentication_error",
                "param": None,
                "code": "invalid_api_key",
            }

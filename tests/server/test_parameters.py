"""Every parameter that is supported changes what it should, and the README says which those are."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.stores.base import SessionKey
from server.parameters.kinds import KINDS
from server.parameters.known import KNOWN
from server.parameters.table import parameter_table
from tests.server.harness import ThreadedServer, new_name, user
from tests.tiny import tiny_checkpoint

CHAT, COMPLETION, RESPONSE = KINDS
# A token that is forced, and one that ends.
LOGPROBS = "message.output_text.logprobs"
FORCED = str(tiny_checkpoint().tokenizer.encode(" the")[0])
END = str(tiny_checkpoint().tokenizer.special.end)


class Wire:
    """A server, and what one kind of request is to it."""

    def __init__(self, server: ThreadedServer, client: httpx.Client, path: str) -> None:
        self.server = server
        self._client = client
        self.path = path

    def send(self, fields: dict[str, Any], path: str | None = None) -> httpx.Response:
        """Greedy and endless, unless `fields` say otherwise; None leaves a field out."""
        body = {"temperature": 0, "ignore_eos": True, **BASES[path or self.path], **fields}
        body = {name: value for name, value in body.items() if value is not None}
        return self._client.post(path or self.path, json=body)

    def session(self) -> str:
        """One that has read a message and its answer."""
        name = new_name("parameters")
        assert self.send({"session_id": name, "read_only": None}, CHAT).status_code == 200
        return name


BASES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [user("The ball is")], "max_tokens": 5},
    COMPLETION: {"prompt": "The ball is", "max_tokens": 5},
    RESPONSE: {"input": "The ball is", "max_output_tokens": 5, "store": False},
}

Seen = Callable[[Wire, httpx.Response], Any]


def said(wire: Wire, response: httpx.Response) -> Any:
    """The texts of an answer."""
    assert response.status_code == 200, response.text
    body = response.json()
    if wire.path == RESPONSE:
        return [part["text"] for item in body["output"] for part in item["content"]]
    return [choice["text"] if "text" in choice else choice["message"]["content"] for choice in body["choices"]]


def usage(wire: Wire, response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["usage"]


def status(wire: Wire, response: httpx.Response) -> Any:
    return response.status_code


def session(wire: Wire, response: httpx.Response) -> Any:
    return response.json().get("session", {}).get("version")


def header(name: str) -> Seen:
    return lambda wire, response: response.headers.get(name)


def choices(name: str) -> Seen:
    return lambda wire, response: [choice[name] for choice in response.json()["choices"]]


def parts(name: str) -> Seen:
    return lambda wire, response: [part[name] for item in response.json()["output"] for part in item["content"]]


def num_chunks(wire: Wire, response: httpx.Response) -> Any:
    return response.text.count("data: ")


def note(wire: Wire, response: httpx.Response) -> Any:
    """What is recorded with the turn."""
    key = SessionKey("default", response.headers["x-session-id"])
    return wire.server.call(wire.server.runtime.serving().storage.load_stored(key)).turns[-1].note


Fields = dict[str, Any] | Callable[[Wire], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Effect:
    """Two requests that differ in one parameter, and where their answers differ.

    values: the parameter's, None where it is left out; or what makes them.   beside: fields of both.
    """

    values: tuple[Any, Any] | Callable[[Wire], tuple[Any, Any]]
    seen: Seen = said
    beside: Fields = field(default_factory=dict)


def conversation(wire: Wire) -> dict[str, Any]:
    """A history that departs from what its session has read."""
    messages = [user("Who?"), {"role": "assistant", "content": "Nobody."}, user("The ball is")]
    name = "input" if wire.path == RESPONSE else "messages"
    return {"session_id": wire.session(), name: messages}


def grown(wire: Wire) -> dict[str, Any]:
    """A history that its session has left behind: the first of two turns."""
    name = wire.session()
    first = wire.send({"session_id": name, "messages": [user("a")], "history": "new"}, CHAT)
    answered = first.json()["choices"][0]["message"]["content"]
    assert wire.send({"session_id": name, "messages": [user("b")], "history": "new"}, CHAT).status_code == 200
    messages = [user("a"), {"role": "assistant", "content": answered}, user("c")]
    return {"session_id": name, "input" if wire.path == RESPONSE else "messages": messages}


def stored(wire: Wire) -> dict[str, Any]:
    """In a session that is written to."""
    return {"session_id": new_name("parameters"), **({"store": True} if wire.path == RESPONSE else {})}


SAMPLED: dict[str, Any] = {"temperature": 2, "seed": 3}
ENDING: dict[str, Any] = {"logit_bias": {END: 100}, "ignore_eos": None}
EFFECTS: dict[str, Effect] = {
    "conversation": Effect(lambda wire: (wire.session(), None), header("x-session-id")),
    "echo": Effect((True, None)),
    "frequency_penalty": Effect((2, 0)),
    "history": Effect(("new", "match"), status, conversation),
    "ignore_eos": Effect((True, None), usage, ENDING),
    "include": Effect(([LOGPROBS], None), parts("logprobs")),
    "input": Effect(("The ball is", "Who?"), usage),
    "instructions": Effect(("Be brief.", None), usage),
    "logit_bias": Effect(({FORCED: 100}, None)),
    "logprobs": Effect((1, None), choices("logprobs")),
    "max_completion_tokens": Effect((2, 3), usage, {"max_tokens": None}),
    "max_output_tokens": Effect((2, 3), usage),
    "max_tokens": Effect((2, 3), usage),
    "messages": Effect(([user("The ball is")], [user("Who?")]), usage),
    "metadata": Effect(({"run": "7"}, None), note, stored),
    "min_p": Effect((1, 0), beside=SAMPLED),
    "min_tokens": Effect((3, 0), usage, ENDING),
    "model": Effect(("atlas-tiny", "another"), status),
    "n": Effect((2, 1)),
    "on_divergence": Effect(("rewind", "error"), status, grown),
    "presence_penalty": Effect((2, 0)),
    "previous_response_id": Effect(lambda wire: (wire.send({"store": True}).json()["id"], None), usage),
    "prompt": Effect(("The ball is", [3, 4, 5])),
    "read_only": Effect((True, None), session, lambda wire: {"session_id": wire.session()}),
    "repetition_penalty": Effect((2, 1)),
    "seed": Effect((1, 2), beside={"temperature": 2}),
    "session_id": Effect(lambda wire: (wire.session(), None), header("x-session-id")),
    "stop": Effect(("the the", None), beside={"logit_bias": {FORCED: 100}}),
    "stop_token_ids": Effect(([int(FORCED)], None), beside={"logit_bias": {FORCED: 100}}),
    "store": Effect((True, False), session),
    "stream": Effect((True, None), header("content-type")),
    "stream_options": Effect(({"include_usage": True}, None), num_chunks, {"stream": True}),
    "temperature": Effect((2, 0), beside={"seed": 3}),
    "top_k": Effect((1, 0), beside=SAMPLED),
    "top_logprobs": Effect((2, 1), choices("logprobs"), {"logprobs": True}),
    "top_p": Effect((0.01, 1), beside=SAMPLED),
    "user": Effect(("u-1", None), note, stored),
}
# Of one name, what is another thing to one kind.
EFFECTS_OF_ONE: dict[tuple[str, str], Effect] = {
    (CHAT, "logprobs"): Effect((True, None), choices("logprobs")),
    (RESPONSE, "top_logprobs"): Effect((2, 1), parts("logprobs"), {"include": [LOGPROBS]}),
    (RESPONSE, "read_only"): Effect((True, None), session, lambda wire: {"session_id": wire.session(), "store": None}),
    # There is nothing to choose: the library's own wish is granted, the other refused.
    (RESPONSE, "stream_options"): Effect(
        ({"include_obfuscation": False}, {"include_obfuscation": True}), status, {"stream": True}
    ),
}


@pytest.fixture(scope="module")
def caller(server: ThreadedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.base_url, timeout=60) as connected:
        yield connected


SERVED = [(path, name) for path in KINDS for name in sorted(KINDS[path].served)]


@pytest.mark.parametrize(("path", "name"), SERVED)
def test_a_supported_parameter_changes_what_it_should(
    server: ThreadedServer, caller: httpx.Client, path: str, name: str
) -> None:
    wire, effect = Wire(server, caller, path), EFFECTS_OF_ONE.get((path, name)) or EFFECTS[name]

    def seen(value: Any) -> Any:
        beside = effect.beside(wire) if callable(effect.beside) else effect.beside
        return effect.seen(wire, wire.send({**beside, name: value}))

    one, other = effect.values(wire) if callable(effect.values) else effect.values
    first = seen(one)
    assert seen(other) != first
    # Nor is it chance that they differ.
    assert seen(one) == first


def test_every_row_is_of_a_parameter_that_some_kind_supports() -> None:
    served = {name for kind in KINDS.values() for name in kind.served}
    assert EFFECTS.keys() == served
    assert EFFECTS_OF_ONE.keys() <= {(path, name) for path in KINDS for name in KINDS[path].served}


def test_what_is_known_is_refused_by_some_kind() -> None:
    assert not [name for name in KNOWN if all(name in kind.served for kind in KINDS.values())]


def test_the_readme_has_the_table_of_the_code() -> None:
    """`python -m server.parameters` prints it."""
    readme = Path(__file__).parents[2] / "README.md"
    assert f"\n\n{parameter_table()}\n\n" in readme.read_text(encoding="utf-8")

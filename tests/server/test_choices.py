"""`n` through the stock library and plain HTTP: several answers, one prompt, one turn."""

from pathlib import Path
from typing import Any

import httpx

from tests.server.harness import (
    ThreadedServer,
    ask,
    assert_refused,
    events_of,
    open_stream,
    read_until,
    sdk,
    serving,
    session_of,
    until,
    user,
)

SAMPLED: dict[str, Any] = {"temperature": 1, "seed": 5, "max_tokens": 8, "ignore_eos": True}
USAGE: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def texts_of(completion: dict[str, Any]) -> list[str]:
    assert [choice["index"] for choice in completion["choices"]] == list(range(len(completion["choices"])))
    return [choice["message"]["content"] for choice in completion["choices"]]


def test_the_library_gets_n_choices_of_which_the_first_is_the_only_ones(server: ThreadedServer) -> None:
    body = {"max_tokens": 8, "extra_body": {"ignore_eos": True}, "temperature": 1, "seed": 5}
    with sdk(server.base_url) as library:
        one = library.chat.completions.create(model="atlas-tiny", messages=[user("Hi")], n=1, **body)
        many = library.chat.completions.create(model="atlas-tiny", messages=[user("Hi")], n=5, **body)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3, 4]
    assert many.choices[0].message.content == one.choices[0].message.content
    assert len({choice.message.content for choice in many.choices}) == 5
    assert many.usage.prompt_tokens == one.usage.prompt_tokens
    assert many.usage.completion_tokens == 5 * one.usage.completion_tokens == 40
    assert many.usage.total_tokens == many.usage.prompt_tokens + 40


def test_streamed_choices_are_interleaved_and_say_what_the_plain_ones_say(
    client: httpx.Client, session_id: str
) -> None:
    plain = ask(client, "Hi", n=3, **SAMPLED).json()
    *chunks, usage, done = events_of(ask(client, "Hi", n=3, session_id=session_id, **SAMPLED, **USAGE))
    assert done == "[DONE]"
    said, ends = chunks[:-3], chunks[-3:]
    texts = ["", "", ""]
    order = []
    for chunk in said:
        (choice,) = chunk["choices"]
        assert ("role" in choice["delta"]) == (choice["index"] not in order)
        assert choice["finish_reason"] is None
        order.append(choice["index"])
        texts[choice["index"]] += choice["delta"]["content"]
    assert texts == texts_of(plain)
    assert order != sorted(order)
    assert [chunk["choices"][0]["index"] for chunk in ends] == [0, 1, 2]
    assert [chunk["choices"][0]["finish_reason"] for chunk in ends] == ["length"] * 3
    assert ends[0]["session"]["version"] == 1
    assert all("session" not in chunk for chunk in ends[1:])
    assert usage["usage"]["completion_tokens"] == 24
    assert usage["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]


def test_a_stored_answer_replays_every_choice_plain_and_streamed(client: httpx.Client, session_id: str) -> None:
    key = {"Idempotency-Key": "once"}
    first = ask(client, "Hi", key, n=3, session_id=session_id, **SAMPLED)
    again = ask(client, "Hi", key, n=3, session_id=session_id, **SAMPLED)
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    streamed = ask(client, "Hi", key, n=3, session_id=session_id, **SAMPLED, **USAGE)
    *chunks, usage, _ = events_of(streamed)
    said = [chunk["choices"][0]["delta"]["content"] for chunk in chunks[:3]]
    assert said == texts_of(first.json())
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[3:]] == ["length"] * 3
    assert chunks[3]["session"] == first.json()["session"]
    assert usage["usage"] == first.json()["usage"]
    assert session_of(client, session_id)["version"] == 1
    other_number = ask(client, "Hi", key, n=2, session_id=session_id, **SAMPLED)
    assert_refused(other_number, 409, "idempotency_mismatch")


def test_a_session_goes_on_from_its_first_choice_and_from_no_other(client: httpx.Client, session_id: str) -> None:
    first, second = texts_of(ask(client, "Hi", n=2, session_id=session_id, **SAMPLED).json())

    def history(said: str) -> list[Any]:
        return [user("Hi"), {"role": "assistant", "content": said}, user("and then?")]

    diverged = ask(client, "", session_id=session_id, messages=history(second))
    assert_refused(diverged, 409, "session_diverged")
    assert ask(client, "", session_id=session_id, messages=history(first)).json()["session"]["version"] == 2


def test_a_client_that_hangs_up_takes_all_choices_back(
    server: ThreadedServer, client: httpx.Client, session_id: str
) -> None:
    ask(client, "a", session_id=session_id)
    before = session_of(client, session_id)
    endless = {"session_id": session_id, "n": 3, "max_tokens": 30_000, "ignore_eos": True, "stream": True}
    with open_stream(server.port, "b", endless) as connection:
        until(lambda: server.num_slots_in_use == 3)
        read_until(connection, b'"index":2')
    until(lambda: server.num_slots_in_use == 0, seconds=5)
    assert session_of(client, session_id) == before


def test_more_choices_than_slots_are_served_and_more_than_there_is_room_for_are_refused_by_name(model: Path) -> None:
    with (
        serving(model, max_num_sequences="2", max_num_waiting="3") as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        assert len(texts_of(ask(client, "Hi", n=5, **SAMPLED).json())) == 5
        assert_refused(ask(client, "Hi", n=6, **SAMPLED), 400, "invalid_request", "n")

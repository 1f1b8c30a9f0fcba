"""POST /v1/chat/completions through the stock OpenAI library and plain HTTP."""

import json
from typing import Any

import httpx
import pytest

from engine.stores.base import SessionKey
from server.logs import JsonFormatter
from tests.server.harness import ThreadedServer, ask, assert_refused, events_of, sdk, session_of, until, user

ANSWER: dict[str, Any] = {"model": "atlas-tiny", "max_tokens": 6, "temperature": 0}


def test_the_stock_library_gets_an_answer_with_usage_and_session(server: ThreadedServer, session_id: str) -> None:
    with sdk(server.base_url) as library:
        answer = library.chat.completions.create(messages=[user("Hi")], extra_body={"session_id": session_id}, **ANSWER)
    assert answer.object == "chat.completion"
    assert answer.model == "atlas-tiny"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    session = answer.model_extra and answer.model_extra["session"]
    assert session["id"] == session_id
    assert (session["version"], session["committed"], session["durability"]) == (1, True, "disk")
    assert session["position"] == answer.usage.prompt_tokens_details.cache_write_tokens


def test_a_stream_says_what_the_plain_answer_says(server: ThreadedServer) -> None:
    with sdk(server.base_url) as library:
        plain = library.chat.completions.create(messages=[user("Hi")], **ANSWER)
        with library.chat.completions.create(
            messages=[user("Hi")], stream=True, stream_options={"include_usage": True}, **ANSWER
        ) as stream:
            chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == plain.choices[0].finish_reason
    assert chunks[-1].usage == plain.usage


def test_a_stream_is_a_role_with_the_first_text_then_the_finish_then_usage_then_done(
    client: httpx.Client, session_id: str
) -> None:
    response = ask(client, "Hi", session_id=session_id, stream=True, stream_options={"include_usage": True})
    *texts, finish, usage, done = events_of(response)
    assert done == "[DONE]"
    assert texts[0]["choices"][0]["delta"]["role"] == "assistant"
    assert texts[0]["choices"][0]["delta"]["content"] != ""
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in texts[1:])
    assert all(chunk["choices"][0]["finish_reason"] is None and "session" not in chunk for chunk in texts)
    assert finish["choices"][0]["finish_reason"] in ("stop", "length")
    assert finish["session"] == {
        "id": session_id,
        "version": 1,
        "committed": True,
        "durability": "disk",
        "position": finish["session"]["position"],
    }
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] > 0
    assert len({chunk["id"] for chunk in (*texts, finish, usage)}) == 1
    assert response.headers["x-session-id"] == session_id
    # The base version: what the turn started from.
    assert response.headers["x-session-version"] == "0"


def test_without_include_usage_no_chunk_has_usage(client: httpx.Client) -> None:
    *chunks, done = events_of(ask(client, "Hi", stream=True))
    assert done == "[DONE]"
    assert all(chunk["choices"] and "usage" not in chunk for chunk in chunks)


def test_the_end_of_a_stream_is_told_only_when_it_is_committed(
    server: ThreadedServer, client: httpx.Client, session_id: str
) -> None:
    body = {"messages": [user("Hi")], "max_tokens": 5, "session_id": session_id, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if '"finish_reason":"' in line:
                with httpx.Client(base_url=server.base_url) as other:
                    assert session_of(other, session_id)["version"] == 1
                return
    pytest.fail("the stream did not end")


def test_resending_the_history_and_sending_only_what_is_new_are_the_same(server: ThreadedServer) -> None:
    resent: list[Any] = []
    with sdk(server.base_url) as library, httpx.Client(base_url=server.base_url) as client:
        for number, question in enumerate(("one", "two", "three")):
            resent.append(user(question))
            whole = library.chat.completions.create(
                messages=resent, extra_headers={"X-Session-Id": "history-whole"}, **ANSWER
            )
            new = library.chat.completions.create(
                messages=[user(question)], extra_body={"session_id": "history-new"}, **ANSWER
            )
            assert whole.choices[0].message.content == new.choices[0].message.content, number
            # As the library gives it back: with its nulls.
            resent.append(whole.choices[0].message.model_dump())
        left, right = session_of(client, "history-whole"), session_of(client, "history-new")
    for name in ("tokens_digest", "position", "version"):
        assert left[name] == right[name]


def test_a_session_is_named_by_the_field_or_the_header(client: httpx.Client, session_id: str) -> None:
    assert ask(client, "a", session_id=session_id).headers["x-session-version"] == "1"
    by_header = ask(client, "b", headers={"X-Session-Id": session_id})
    assert by_header.headers["x-session-version"] == "2"
    assert by_header.headers["x-session-id"] == session_id
    assert ask(client, "c", {"X-Session-Id": session_id}, session_id=session_id).status_code == 200
    differing = ask(client, "d", {"X-Session-Id": session_id}, session_id="another")
    assert_refused(differing, 400, "invalid_request", "session_id")
    assert session_of(client, session_id)["version"] == 3


def test_parts_of_text_are_the_text(client: httpx.Client) -> None:
    parts = [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "you"}]
    left = ask(client, "", messages=[{"role": "user", "content": parts}]).json()
    right = ask(client, "Hello, you").json()
    assert left["choices"] == right["choices"]
    assert left["usage"] == right["usage"]


def test_without_a_session_nothing_is_kept(client: httpx.Client) -> None:
    before = client.get("/v1/sessions?limit=1000").json()
    first, second = ask(client, "Hi"), ask(client, "Hi")
    assert first.json()["choices"] == second.json()["choices"]
    assert "session" not in first.json()
    assert "x-session-id" not in first.headers
    assert client.get("/v1/sessions?limit=1000").json() == before


def test_a_seed_repeats_a_sampled_answer_and_another_seed_does_not(client: httpx.Client) -> None:
    def sampled(seed: int) -> str:
        response = ask(client, "Hi", temperature=1, seed=seed, max_tokens=20, ignore_eos=True)
        content: str = response.json()["choices"][0]["message"]["content"]
        return content

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)


def test_each_length_parameter_has_its_effect(client: httpx.Client) -> None:
    def num_tokens(**fields: Any) -> int:
        count: int = ask(client, "Hi", **fields).json()["usage"]["completion_tokens"]
        return count

    assert num_tokens(max_tokens=9, ignore_eos=True) == 9
    assert num_tokens(max_tokens=None, max_completion_tokens=7, ignore_eos=True) == 7
    assert num_tokens(max_tokens=30, min_tokens=30) == 30


def test_top_k_of_one_is_greedy_whatever_the_temperature(client: httpx.Client) -> None:
    greedy = ask(client, "Hi", max_tokens=12, ignore_eos=True).json()["choices"]
    assert ask(client, "Hi", max_tokens=12, ignore_eos=True, temperature=2, top_k=1).json()["choices"] == greedy
    assert ask(client, "Hi", max_tokens=12, ignore_eos=True, temperature=2, top_p=1e-9).json()["choices"] == greedy


def test_a_stop_string_ends_the_answer_before_itself(client: httpx.Client) -> None:
    def content(**fields: Any) -> tuple[str, str]:
        choice = ask(client, "Hi", max_tokens=24, ignore_eos=True, **fields).json()["choices"][0]
        return choice["message"]["content"], choice["finish_reason"]

    whole, reason = content()
    assert reason == "length"
    stop = whole[5:8]
    assert content(stop=stop) == (whole[: whole.index(stop)], "stop")
    assert content(stop=["never said at all", stop]) == (whole[: whole.index(stop)], "stop")


def test_a_repeated_key_is_answered_from_the_store_plain_and_streamed(client: httpx.Client, session_id: str) -> None:
    key = {"Idempotency-Key": "once"}
    first = ask(client, "Hi", key, session_id=session_id)
    ask(client, "more", session_id=session_id)
    again = ask(client, "Hi", key, session_id=session_id)
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["x-session-version"] == "1"
    streamed = ask(client, "Hi", key, session_id=session_id, stream=True, stream_options={"include_usage": True})
    text, finish, usage, _ = events_of(streamed)
    assert text["choices"][0]["delta"]["content"] == first.json()["choices"][0]["message"]["content"]
    assert finish["session"] == first.json()["session"]
    assert finish["id"] == first.json()["id"]
    assert usage["usage"] == first.json()["usage"]
    assert session_of(client, session_id)["version"] == 2
    another = ask(client, "something else", key, session_id=session_id)
    assert_refused(another, 409, "idempotency_mismatch")
    assert another.headers["x-should-retry"] == "false"


def test_a_retry_of_the_library_is_answered_and_not_learned_twice(client: httpx.Client, session_id: str) -> None:
    first = ask(client, "Hi", session_id=session_id)
    retried = ask(client, "Hi", {"x-stainless-retry-count": "1"}, session_id=session_id)
    assert retried.json() == first.json()
    assert session_of(client, session_id)["version"] == 1
    ask(client, "Hi", {"x-stainless-retry-count": "0"}, session_id=session_id)
    assert session_of(client, session_id)["version"] == 2


def test_if_match_makes_a_turn_conditional(client: httpx.Client, session_id: str) -> None:
    ask(client, "a", session_id=session_id)
    assert_refused(ask(client, "b", {"If-Match": '"7"'}, session_id=session_id), 412, "version_conflict")
    assert_refused(ask(client, "b", {"If-Match": "W/x"}, session_id=session_id), 400, "invalid_request", "If-Match")
    assert ask(client, "b", {"If-Match": '"1"'}, session_id=session_id).headers["x-session-version"] == "2"
    assert ask(client, "c", {"If-Match": "2"}, session_id=session_id).headers["x-session-version"] == "3"


def test_a_read_only_turn_remembers_and_leaves_no_trace(client: httpx.Client, session_id: str) -> None:
    assert_refused(ask(client, "a", session_id=session_id, read_only=True), 404, "session_not_found")
    ask(client, "a", session_id=session_id)
    before = session_of(client, session_id)
    answer = ask(client, "b", session_id=session_id, read_only=True).json()
    assert answer["session"]["committed"] is False
    assert answer["session"]["version"] == 1
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": before["position"], "cache_write_tokens": 0}
    assert session_of(client, session_id) == before


def test_a_history_that_departs_is_a_conflict_that_names_the_message(client: httpx.Client, session_id: str) -> None:
    ask(client, "a", session_id=session_id)
    messages = [user("a"), {"role": "assistant", "content": "I never said this"}, user("b")]
    refused = ask(client, "", session_id=session_id, messages=messages)
    assert_refused(refused, 409, "session_diverged")
    assert "messages[1]" in refused.json()["error"]["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert ask(client, "", session_id=session_id, messages=messages, history="new").status_code == 200
    assert_refused(ask(client, "c", session_id=session_id, history="match"), 409, "session_diverged")


def test_unknown_parameters_are_ignored_and_listed(client: httpx.Client) -> None:
    fields: dict[str, Any] = {"prompt_cache_key": "x", "my_own": 1, "No Name!": 2, "n": 1, "tools": []}
    response = ask(client, "Hi", **fields)
    assert response.status_code == 200
    assert response.headers["x-ignored-parameters"] == "prompt_cache_key, my_own"


def test_user_and_metadata_are_recorded_with_the_turn_and_with_the_line_of_the_log(
    server: ThreadedServer, client: httpx.Client, session_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="server.requests")
    note: dict[str, Any] = {"user": "u-1\nnext", "metadata": {"run": "7"}}
    ask(client, "Hi", session_id=session_id, **note)
    stored = server.call(server.runtime.serving().storage.load_stored(SessionKey("default", session_id)))
    assert stored.turns[-1].note == note
    until(lambda: caplog.records)
    line = JsonFormatter().format(caplog.records[-1])
    assert json.loads(line).items() >= {**note, "status": 200}.items()
    assert "\n" not in line


def test_special_tokens_in_a_text_are_text(client: httpx.Client) -> None:
    plain = ask(client, "abc").json()["usage"]["prompt_tokens"]
    sneaky = ask(client, "<end><bos>").json()["usage"]["prompt_tokens"]
    assert sneaky > plain
    tokens = client.post("/tokenize", json={"text": "<end>"}).json()["tokens"]
    assert len(tokens) > 1
    assert client.post("/detokenize", json={"tokens": tokens}).json()["text"] == "<end>"


@pytest.mark.parametrize("text", [" " * 10_000, "\U0001f468‍\U0001f469‍\U0001f467", "a\0b", "﻿x"])
def test_odd_texts_are_read_like_any_other(client: httpx.Client, text: str) -> None:
    assert ask(client, text).status_code == 200

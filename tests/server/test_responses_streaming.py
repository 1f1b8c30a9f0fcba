"""Streamed responses: the events that the stock library waits for, in their order, and what a failure looks like."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from engine.errors import CommitConflict, SessionBusy
from server.answers.response_ids import ResponseId
from server.frames.response import ResponseFrame
from tests.server.harness import ThreadedServer, sdk, session_of, until

GREEDY: dict[str, Any] = {"model": "atlas-tiny", "max_output_tokens": 6, "temperature": 0}
OPENING = ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
DELTA = "response.output_text.delta"
CLOSING = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


@pytest.fixture
def library(server: ThreadedServer) -> Iterator[Any]:
    with sdk(server.base_url) as connected:
        yield connected


def events_of(text: str) -> list[dict[str, Any]]:
    """Every event's data, after it was found to be named as its type and to be one that the library knows, strictly."""
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_python(event)
        events.append(event)
    return events


def test_the_events_are_those_of_one_text_and_numbered(client: httpx.Client) -> None:
    body = {"input": "Hi", "stream": True, "ignore_eos": True, **GREEDY}
    response = client.post("/v1/responses", json=body)
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["x-session-version"] == "0"
    events = events_of(response.text)
    kinds = [event["type"] for event in events]
    assert kinds[:4] == OPENING
    assert set(kinds[4:-4]) == {DELTA}
    assert len(kinds[4:-4]) > 1
    assert kinds[-4:] == [*CLOSING, "response.incomplete"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    text = "".join(event["delta"] for event in events if event["type"] == DELTA)
    last = events[-1]["response"]
    assert [text] == [part["text"] for part in last["output"][0]["content"]]
    assert last["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["status"] == last["output"][0]["status"] == "incomplete"
    assert last["usage"]["output_tokens"] == 6
    assert last["session"]["version"] == 1
    assert {event["response"]["id"] for event in events if "response" in event} == {last["id"]}
    assert {event["item_id"] for event in events if "item_id" in event} == {last["output"][0]["id"]}


def test_the_librarys_stream_helper_gets_the_whole_response(library: Any) -> None:
    cut = library.responses.create(input="Hi", **GREEDY)
    # An end of its own, before the limit.
    stopped = {"stop": cut.output_text[-1]}
    plain = library.responses.create(input="Hi", extra_body=stopped, **GREEDY)
    with library.responses.stream(input="Hi", extra_body=stopped, **GREEDY) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[-1] == "response.completed"
    assert final.status == plain.status == "completed"
    assert cut.output_text.startswith(final.output_text)
    assert (plain.output_text, plain.usage) == (final.output_text, final.usage)


def test_the_asynchronous_library_streams_too_and_goes_on(server: ThreadedServer) -> None:
    async def test() -> None:
        async with AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="unused", max_retries=0) as library:
            conversation = await library.conversations.create()
            said = []
            for text in ("one", "two"):
                stream: Any = await library.responses.create(
                    input=text, conversation=conversation.id, stream=True, **GREEDY
                )
                async for event in stream:
                    if event.type == DELTA:
                        said.append(event.delta)
            assert said
            assert event.response.model_extra["session"]["version"] == 2
            raw: Any = await library.responses.with_raw_response.retrieve(event.response.id)
            assert raw.parse().output_text == event.response.output_text

    asyncio.run(test())


def test_the_end_is_told_only_when_it_is_committed(server: ThreadedServer, client: httpx.Client) -> None:
    body = {"input": "Hi", "stream": True, **GREEDY}
    with client.stream("POST", "/v1/responses", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("event: response.output_text.done"):
                with httpx.Client(base_url=server.base_url) as other:
                    assert session_of(other, response.headers["x-session-id"])["version"] == 1
                return
    pytest.fail("the stream did not end")


def test_a_branch_is_named_by_the_headers_and_the_first_event(library: Any) -> None:
    root = library.responses.create(input="one", **GREEDY)
    library.responses.create(input="two", previous_response_id=root.id, **GREEDY)
    raw = library.responses.with_raw_response.create(input="three", previous_response_id=root.id, stream=True, **GREEDY)
    first, *_, last = raw.parse()
    assert raw.headers["x-session-id"] not in root.id
    assert first.response.id == last.response.id
    assert last.response.id.endswith(raw.headers["x-session-id"])
    assert last.response.model_extra["session"]["id"] == raw.headers["x-session-id"]


def test_a_stored_response_is_streamed_again_from_any_event(library: Any) -> None:
    response = library.responses.create(input="Hi", **GREEDY)
    events = list(library.responses.retrieve(response.id, stream=True))
    assert [event.type for event in events[:4]] == OPENING
    assert events[4].delta == response.output_text
    assert events[-1].response == response
    rest = list(library.responses.retrieve(response.id, stream=True, starting_after=3))
    assert rest == events[4:]
    with pytest.raises(openai.BadRequestError, match="needs stream"):
        library.responses.retrieve(response.id, starting_after=3)


def test_a_client_that_hangs_up_takes_its_response_back(server: ThreadedServer, client: httpx.Client) -> None:
    conversation = client.post("/v1/conversations", json={}).json()["id"]
    body = {
        "input": "Hi",
        "conversation": conversation,
        "stream": True,
        "ignore_eos": True,
        "max_output_tokens": 30_000,
    }
    with client.stream("POST", "/v1/responses", json=body) as response:
        assert next(response.iter_lines()) == "event: response.created"
    until(lambda: server.num_slots_in_use == 0)
    assert session_of(client, conversation)["version"] == 0


def test_a_failure_after_the_first_word_is_a_failed_response_and_an_error_that_the_library_raises(
    server: ThreadedServer, library: Any, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose(*_: Any) -> None:
        raise CommitConflict("another writer committed first")

    conversation = library.conversations.create()
    monkeypatch.setattr(server.runtime.serving().sessions._committed, "commit", lose)
    stream = library.responses.create(input="Hi", conversation=conversation.id, stream=True, **GREEDY)
    kinds: list[str] = []
    with pytest.raises(openai.APIError, match="another writer") as raised:
        kinds.extend(event.type for event in stream)
    assert kinds[-1] == "response.failed"
    assert raised.value.code == "session_busy"
    body = {"input": "Hi", "conversation": conversation.id, "stream": True, **GREEDY}
    *_, failed, error = events_of(client.post("/v1/responses", json=body).text)
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert (error["type"], error["code"]) == ("error", "session_busy")
    assert session_of(client, conversation.id)["version"] == 0


def test_a_failure_before_the_first_word_of_a_stream_that_was_kept_alive_is_told_of_a_response_too() -> None:
    told = {"parallel_tool_calls": False, "tool_choice": "none", "tools": []}
    frame = ResponseFrame("atlas-tiny", told, None)
    frame.opened("s", 7)
    events = events_of(frame.failed(SessionBusy("another writer was first")).decode())
    assert [event["type"] for event in events] == [*OPENING[:2], "response.failed", "error"]
    assert [event["sequence_number"] for event in events] == [0, 1, 2, 3]
    assert len({event["response"]["id"] for event in events[:3]}) == 1
    assert ResponseId.parse(events[0]["response"]["id"]).version == 7


def test_log_probabilities_are_a_chats_whole_streamed_and_replayed(library: Any) -> None:
    chat = library.chat.completions.create(
        model="atlas-tiny",
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=6,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    expected = [(each.token, each.logprob, len(each.top_logprobs)) for each in chat.choices[0].logprobs.content]
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "input": "Hi", **GREEDY}
    raw = library.responses.with_raw_response.create(**asked)
    response = raw.parse()
    told = response.output[0].content[0].logprobs
    assert [(each.token, each.logprob, len(each.top_logprobs)) for each in told] == expected
    events = list(library.responses.create(stream=True, **asked))
    deltas = [each for event in events if event.type == DELTA for each in event.logprobs]
    assert [(each.token, each.logprob, len(each.top_logprobs)) for each in deltas] == expected
    assert events[-1].response.output[0].content[0].logprobs == told
    replayed = list(library.responses.retrieve(response.id, stream=True))
    assert [each.token for each in replayed[4].logprobs] == [token for token, _, _ in expected]
    assert response.top_logprobs == 2
    # Strictly what the library knows.
    events_of("\n\n".join(f"event: {event.type}\ndata: {event.model_dump_json()}" for event in events))

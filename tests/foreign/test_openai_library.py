"""The stock `openai` library as a program uses it: whole, raw and streamed answers, many at once, its own errors."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.server.harness import ThreadedServer, sdk, session_of, until, user

MODEL = "atlas-tiny"
GREEDY: dict[str, Any] = {"model": MODEL, "max_tokens": 12, "temperature": 0}
ENDLESS: dict[str, Any] = {"model": MODEL, "max_tokens": 30_000, "extra_body": {"ignore_eos": True}}


@pytest.fixture
def library(server: ThreadedServer) -> Iterator[Any]:
    with sdk(server.base_url) as connected:
        yield connected


def in_session(session_id: str) -> dict[str, Any]:
    return {**GREEDY, "extra_headers": {"X-Session-Id": session_id}}


def test_the_models_that_are_listed_are_the_model_that_answers(library: Any) -> None:
    listed = list(library.models.list())
    assert [model.id for model in listed] == [MODEL]
    assert library.models.retrieve(MODEL) == listed[0]
    assert library.chat.completions.create(messages=[user("Hi")], **GREEDY).model == MODEL
    with pytest.raises(openai.NotFoundError) as refused:
        library.models.retrieve("another")
    assert refused.value.code == "model_not_found"


def test_an_answer_is_the_same_whole_streamed_raw_and_by_the_librarys_own_stream_of_events(library: Any) -> None:
    asked: dict[str, Any] = {"messages": [user("Tell me")], **GREEDY}
    whole = library.chat.completions.create(**asked)
    text = whole.choices[0].message.content
    assert text

    raw = library.chat.completions.with_raw_response.create(**asked)
    assert raw.headers["content-type"] == "application/json"
    assert raw.request_id
    assert raw.parse().choices == whole.choices

    with library.chat.completions.with_streaming_response.create(stream=True, **asked) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"

    chunks = list(library.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == text
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage.model_dump() == whole.usage.model_dump()

    # The library's own collector raises for an answer that was cut by max_tokens.
    stop = text[-2:]
    with library.chat.completions.stream(stop=stop, **asked) as events:
        told = "".join(event.delta for event in events if event.type == "content.delta")
    final = events.get_final_completion().choices[0]
    assert final.message.content == told == text[: text.index(stop)]
    assert final.finish_reason == "stop"


def test_a_session_is_a_header_and_its_version_is_in_the_raw_answer(library: Any, session_id: str) -> None:
    for version in (1, 2):
        raw = library.chat.completions.with_raw_response.create(messages=[user("again")], **in_session(session_id))
        assert raw.headers["x-session-id"] == session_id
        assert raw.headers["x-session-version"] == str(version)
        assert raw.parse().session["version"] == version


def test_many_at_once_on_one_loop_are_answered_as_one_after_the_other(server: ThreadedServer, library: Any) -> None:
    texts = [f"question {number}" for number in range(12)]
    alone = [library.chat.completions.create(messages=[user(text)], **GREEDY) for text in texts]

    async def ask_all() -> list[str]:
        options: dict[str, Any] = {"base_url": f"{server.base_url}/v1", "api_key": "unused", "max_retries": 0}
        async with openai.AsyncOpenAI(**options) as connected:
            client: Any = connected

            async def streamed(text: str) -> str:
                said = ""
                async for chunk in await client.chat.completions.create(messages=[user(text)], stream=True, **GREEDY):
                    said += chunk.choices[0].delta.content or ""
                return said

            return list(await asyncio.gather(*map(streamed, texts)))

    assert asyncio.run(ask_all()) == [answer.choices[0].message.content for answer in alone]


def test_a_call_that_runs_out_of_time_is_the_librarys_timeout_and_leaves_the_session_as_it_was(
    server: ThreadedServer, client: httpx.Client, library: Any, session_id: str
) -> None:
    library.chat.completions.create(messages=[user("one")], **in_session(session_id))
    before = session_of(client, session_id)
    impatient = library.with_options(timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        impatient.chat.completions.create(messages=[user("two")], extra_headers={"X-Session-Id": session_id}, **ENDLESS)
    until(lambda: server.num_slots_in_use == 0)
    assert session_of(client, session_id) == before


def test_a_stream_that_is_left_early_is_over_on_the_server_too(server: ThreadedServer, library: Any) -> None:
    with library.chat.completions.create(messages=[user("go on")], stream=True, **ENDLESS) as stream:
        next(stream)
        assert server.num_slots_in_use == 1
    until(lambda: server.num_slots_in_use == 0)


def test_every_refusal_is_the_librarys_error_with_our_code_and_the_name_of_the_field(library: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        library.chat.completions.create(messages=[user("a")], model=MODEL, temperature=-1)
    assert (refused.value.code, refused.value.param) == ("invalid_request", "temperature")
    with pytest.raises(openai.NotFoundError) as refused_model:
        library.chat.completions.create(messages=[user("a")], model="gpt-4o")
    assert refused_model.value.code == "model_not_found"
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    with pytest.raises(openai.BadRequestError) as refused_tool:
        library.chat.completions.create(messages=[user("a")], tools=[tool], **GREEDY)
    assert (refused_tool.value.code, refused_tool.value.param) == ("unsupported_parameter", "tools")
    with pytest.raises(openai.NotFoundError) as refused_path:
        library.embeddings.create(model=MODEL, input="a")
    assert refused_path.value.code == "not_found"


def test_an_answer_in_a_schema_is_refused_by_name(library: Any) -> None:
    class Place(BaseModel):
        name: str

    with pytest.raises(openai.BadRequestError) as refused:
        library.chat.completions.parse(messages=[user("a")], response_format=Place, **GREEDY)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "response_format")

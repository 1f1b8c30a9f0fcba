"""One conversation with the stock library by every road that it has: completions, chats, responses, conversations."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.server.harness import ThreadedServer, sdk, user

MODEL = "atlas-tiny"
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0}


@pytest.fixture
def library(server: ThreadedServer) -> Iterator[Any]:
    with sdk(server.base_url) as connected:
        yield connected


def test_a_conversation_is_made_asked_and_deleted_and_knows_what_a_chat_would(library: Any) -> None:
    conversation = library.conversations.create(metadata={"book": "Emma"})
    asked: dict[str, Any] = {**GREEDY, "conversation": conversation.id, "max_output_tokens": 6}
    first = library.responses.create(input="Mary went to the garden.", **asked)
    second = library.responses.create(input="Where is Mary?", **asked)
    assert second.usage.input_tokens_details.cached_tokens > 0

    in_chat = {**GREEDY, "max_tokens": 6, "extra_headers": {"X-Session-Id": f"chat-of-{conversation.id}"}}
    said = [
        library.chat.completions.create(messages=[user(text)], **in_chat).choices[0].message.content
        for text in ("Mary went to the garden.", "Where is Mary?")
    ]
    assert [first.output_text, second.output_text] == said

    # The memory keeps no list of what it has learned; a response has its own.
    (item,) = library.responses.input_items.list(second.id)
    assert item.content[0].text == "Where is Mary?"
    assert library.conversations.retrieve(conversation.id).metadata == {"book": "Emma"}
    assert library.conversations.delete(conversation.id).deleted
    with pytest.raises(openai.NotFoundError):
        library.conversations.retrieve(conversation.id)


def test_a_response_branches_and_streams_and_is_found_again_on_a_loop_and_off_it(
    server: ThreadedServer, library: Any
) -> None:
    start = library.responses.create(input="Mary went to the garden.", max_output_tokens=6, **GREEDY)
    asked: dict[str, Any] = {**GREEDY, "previous_response_id": start.id, "max_output_tokens": 6}
    whole = library.responses.create(input="Where is Mary?", **asked)
    # From the same one again: nothing of the first branch is known to the second.
    with library.responses.stream(input="Where is Mary?", **asked) as stream:
        events = list(stream)
    told = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[-1].type == "response.incomplete"
    streamed = events[-1].response
    assert streamed.output_text == told == whole.output_text
    assert streamed.usage == whole.usage
    assert library.responses.retrieve(whole.id).output_text == whole.output_text

    async def branch() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="unused") as connected:
            client: Any = connected
            return await client.responses.create(input="Where is Mary?", **asked)

    assert asyncio.run(branch()).output_text == whole.output_text
    library.responses.delete(whole.id)
    with pytest.raises(openai.NotFoundError):
        library.responses.retrieve(whole.id)


def test_a_completion_with_log_probabilities_is_the_same_whole_and_streamed(library: Any) -> None:
    asked: dict[str, Any] = {**GREEDY, "prompt": "Mary went to the", "max_tokens": 6, "logprobs": 2, "echo": True}
    whole = library.completions.create(**asked).choices[0]
    assert whole.text.startswith("Mary went to the")
    assert "".join(whole.logprobs.tokens).startswith("Mary went to the")
    streamed = [chunk.choices[0] for chunk in library.completions.create(stream=True, **asked)]
    assert "".join(choice.text for choice in streamed) == whole.text
    told = [value for choice in streamed if choice.logprobs for value in choice.logprobs.token_logprobs]
    assert told == whole.logprobs.token_logprobs

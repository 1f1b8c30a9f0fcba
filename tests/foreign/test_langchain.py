"""LangChain's ChatOpenAI against a session and without one: what it is told to do, and what it makes of our answers."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
import openai
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

from tests.server.harness import ThreadedServer, new_name, session_of

T = TypeVar("T")


def chat_model(server: ThreadedServer, **options: Any) -> ChatOpenAI:
    defaults = {"model": "atlas-tiny", "api_key": "none", "max_tokens": 6, "temperature": 0, "max_retries": 0}
    return ChatOpenAI(**{"base_url": f"{server.base_url}/v1", **defaults, **options})


def in_session(server: ThreadedServer, session_id: str, **options: Any) -> ChatOpenAI:
    return chat_model(server, default_headers={"X-Session-Id": session_id}, **options)


def on_a_loop(server: ThreadedServer, work: Callable[[ChatOpenAI], Awaitable[T]]) -> T:
    """What `work` returns for a model whose connections belong to the loop it runs on and end with it: by default they
    are kept for the process, and would be used on the next loop."""

    async def run() -> T:
        async with httpx.AsyncClient() as connections:
            return await work(chat_model(server, http_async_client=connections))

    return asyncio.run(run())


def text_of(message: Any) -> str:
    assert isinstance(message.content, str)
    return message.content


def test_invoke_stream_and_their_asynchronous_twins_say_the_same(server: ThreadedServer) -> None:
    # By itself it asks for the usage of a stream only at its vendor's own address.
    model = chat_model(server, stream_usage=True)
    messages = [SystemMessage("Be brief."), HumanMessage("Where is Mary?")]
    whole = model.invoke(messages)
    assert isinstance(whole, AIMessage)
    streamed = sum(model.stream(messages), start=AIMessageChunk(""))

    async def both_ways(model: ChatOpenAI) -> tuple[str, str]:
        parts = [text_of(chunk) async for chunk in model.astream(messages)]
        return text_of(await model.ainvoke(messages)), "".join(parts)

    assert [text_of(streamed), *on_a_loop(server, both_ways)] == [text_of(whole)] * 3
    assert streamed.usage_metadata == whole.usage_metadata
    assert streamed.response_metadata["finish_reason"] == whole.response_metadata["finish_reason"] == "length"


def test_usage_metadata_counts_what_was_asked_said_and_remembered(
    server: ThreadedServer, client: httpx.Client, session_id: str
) -> None:
    model = in_session(server, session_id)
    first = model.invoke("Mary went to the garden.")
    position = session_of(client, session_id)["position"]
    second = model.invoke("Where is Mary?")
    assert isinstance(first, AIMessage)
    assert isinstance(second, AIMessage)
    assert first.usage_metadata is not None
    assert second.usage_metadata is not None
    assert first.usage_metadata["output_tokens"] == 6
    assert first.usage_metadata["total_tokens"] == first.usage_metadata["input_tokens"] + 6
    assert first.usage_metadata["input_token_details"]["cache_read"] == 0
    assert second.usage_metadata["input_token_details"]["cache_read"] == position
    assert second.usage_metadata["input_tokens"] > position


def test_a_chain_that_sends_its_whole_history_feeds_only_what_is_new(
    server: ThreadedServer, client: httpx.Client, session_id: str
) -> None:
    """The session is the one of a program that sent each message alone."""
    model = in_session(server, session_id)
    history: list[Any] = []
    for text in ("one", "two", "three"):
        history.append(HumanMessage(text))
        history.append(model.invoke(history))
    twin = new_name()
    said = [text_of(in_session(server, twin).invoke(text)) for text in ("one", "two", "three")]
    assert [text_of(message) for message in history[1::2]] == said
    assert session_of(client, session_id)["tokens_digest"] == session_of(client, twin)["tokens_digest"]


def test_a_batch_is_answered_as_one_by_one_and_a_chain_as_its_prompt(server: ThreadedServer) -> None:
    model = chat_model(server)
    texts = [f"question {number}" for number in range(6)]
    one_by_one = [text_of(model.invoke(text)) for text in texts]
    assert [text_of(message) for message in model.batch(texts)] == one_by_one
    chain = ChatPromptTemplate.from_messages([("human", "question {number}")]) | model | StrOutputParser()
    assert chain.invoke({"number": 3}) == one_by_one[3]
    at_once = on_a_loop(server, lambda model: model.abatch(texts))
    assert [text_of(message) for message in at_once] == one_by_one


def test_options_reach_the_server(server: ThreadedServer) -> None:
    whole = text_of(chat_model(server, max_tokens=12).invoke("Tell me"))
    stopped = chat_model(server, max_tokens=12).invoke("Tell me", stop=[whole[-2:]])
    assert text_of(stopped) == whole[: whole.index(whole[-2:])]
    assert stopped.response_metadata["finish_reason"] == "stop"
    seeded = [text_of(chat_model(server, temperature=1, seed=7, top_p=0.9).invoke("Tell me")) for _ in range(2)]
    assert seeded[0] == seeded[1]
    (choices,) = chat_model(server, temperature=1, seed=7, n=3).generate([[HumanMessage("Tell me")]]).generations
    assert len({choice.text for choice in choices}) == 3


def test_log_probabilities_come_with_the_answer(server: ThreadedServer) -> None:
    told = chat_model(server, logprobs=True, top_logprobs=2).invoke("Tell me").response_metadata["logprobs"]["content"]
    assert len(told) == 6
    for token in told:
        assert token["logprob"] == max(other["logprob"] for other in token["top_logprobs"])


def test_a_text_is_continued_whole_and_streamed(server: ThreadedServer) -> None:
    where = {"base_url": f"{server.base_url}/v1", "api_key": "none", "max_retries": 0}
    model = OpenAI(model="atlas-tiny", max_tokens=6, temperature=0, **where)
    whole = model.invoke("Mary went to the")
    assert whole
    assert "".join(model.stream("Mary went to the")) == whole
    assert model.batch(["Mary went to the"] * 3) == [whole] * 3


def test_responses_go_on_from_the_one_before(server: ThreadedServer) -> None:
    model = chat_model(server, use_responses_api=True, use_previous_response_id=True, output_version="responses/v1")
    first = model.invoke([HumanMessage("Mary went to the garden.")])
    second = model.invoke([HumanMessage("Mary went to the garden."), first, HumanMessage("Where is Mary?")])
    assert second.text
    assert second.usage_metadata["input_token_details"]["cache_read"] > 0


def test_what_is_not_served_is_an_error_that_names_it(server: ThreadedServer) -> None:
    model = chat_model(server)
    with pytest.raises(openai.BadRequestError) as refused:
        model.with_structured_output({"title": "Place", "type": "object", "properties": {}}).invoke("a")
    assert refused.value.param == "response_format"
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    with pytest.raises(openai.BadRequestError) as refused_tool:
        model.bind_tools([tool]).invoke("a")
    assert refused_tool.value.param == "tools"
    embeddings = OpenAIEmbeddings(
        base_url=f"{server.base_url}/v1", api_key="none", model="atlas-tiny", check_embedding_ctx_length=False
    )
    with pytest.raises(openai.NotFoundError):
        embeddings.embed_query("a")

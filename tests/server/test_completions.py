"""POST /v1/completions through the stock OpenAI library and plain HTTP: a text is continued as it is."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from engine.sampling.sampling_params import SamplingParams
from engine.sequence import Sequence
from tests.engine.harness import answer, new_core
from tests.server.harness import (
    ThreadedServer,
    ask,
    assert_refused,
    events_of,
    new_name,
    sdk,
    serving,
    session_of,
    user,
)
from tests.tiny import tiny_checkpoint

GREEDY: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
SAMPLED: dict[str, Any] = {"max_tokens": 6, "temperature": 1, "seed": 5, "ignore_eos": True}
USAGE: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
TEXT = "Mary went to the"


def complete(client: httpx.Client, prompt: Any, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return client.post("/v1/completions", json={"prompt": prompt, **GREEDY, **fields}, headers=headers)


def texts_of(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    choices = response.json()["choices"]
    assert [choice["index"] for choice in choices] == list(range(len(choices)))
    return [choice["text"] for choice in choices]


def text_of(response: httpx.Response) -> str:
    (text,) = texts_of(response)
    return text


def token_ids(text: str) -> list[int]:
    return tiny_checkpoint().tokenizer.encode(text)


def bos() -> int:
    return tiny_checkpoint().tokenizer.special.bos


def test_a_text_is_continued_as_the_engine_continues_its_tokens_after_bos(client: httpx.Client) -> None:
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    alone = answer(new_core(), Sequence("a", [bos(), *token_ids(TEXT)], params))
    response = complete(client, TEXT)
    assert text_of(response) == alone.text
    body = response.json()
    assert body["object"] == "text_completion"
    assert body["usage"]["prompt_tokens"] == 1 + len(token_ids(TEXT))
    assert body["choices"][0] == {"index": 0, "text": alone.text, "logprobs": None, "finish_reason": "length"}


def test_the_stock_library_gets_plain_streamed_and_asynchronous_completions(server: ThreadedServer) -> None:
    asked: dict[str, Any] = {"model": "atlas-tiny", "prompt": TEXT, "max_tokens": 6, "temperature": 0}
    with sdk(server.base_url) as library:
        plain = library.completions.create(**asked)
        chunks = list(library.completions.create(**asked, **USAGE))

    async def create() -> tuple[Any, list[Any]]:
        async with AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="unused") as asynchronous:
            told = {**asked, "logprobs": 1, "echo": True}
            whole = await asynchronous.completions.create(**told)
            return whole, [chunk async for chunk in await asynchronous.completions.create(stream=True, **told)]

    whole, parts = asyncio.run(create())
    assert plain.object == "text_completion"
    assert whole.choices[0].text == TEXT + plain.choices[0].text
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        told = [part.choices[0].logprobs for part in parts if part.choices[0].logprobs]
        streamed = [item for logprobs in told for item in getattr(logprobs, name)]
        assert streamed == getattr(whole.choices[0].logprobs, name)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == plain.choices[0].text
    assert chunks[-2].choices[0].finish_reason == plain.choices[0].finish_reason
    assert chunks[-1].usage == plain.usage
    assert chunks[-1].choices == []


def test_a_prompt_is_a_text_or_its_ids_with_bos_or_without(client: httpx.Client) -> None:
    said = text_of(complete(client, TEXT))
    for prompt in (token_ids(TEXT), [bos(), *token_ids(TEXT)], [TEXT], [token_ids(TEXT)]):
        response = complete(client, prompt)
        assert text_of(response) == said
        assert response.json()["usage"]["prompt_tokens"] == 1 + len(token_ids(TEXT))


def test_special_tokens_in_a_text_are_text_and_as_ids_are_themselves(client: httpx.Client) -> None:
    special = tiny_checkpoint().tokenizer.special
    as_text = complete(client, "a<user>b").json()["usage"]["prompt_tokens"]
    as_ids = complete(client, [*token_ids("a"), special.user, *token_ids("b")]).json()["usage"]["prompt_tokens"]
    assert as_text == 1 + len(token_ids("a<user>b"))
    assert as_ids == 2 + len(token_ids("a")) + len(token_ids("b"))


def test_several_prompts_are_answered_as_each_alone_and_their_choices_follow_each_other(client: httpx.Client) -> None:
    prompts = ["The ball is", TEXT, "Who"]
    alone = [texts_of(complete(client, prompt, n=2, **SAMPLED)) for prompt in prompts]
    together = complete(client, prompts, n=2, **SAMPLED)
    assert texts_of(together) == [text for texts in alone for text in texts]
    usage = together.json()["usage"]
    assert usage["prompt_tokens"] == sum(1 + len(token_ids(prompt)) for prompt in prompts)
    assert usage["completion_tokens"] == 36
    assert texts_of(complete(client, [token_ids(prompt) for prompt in prompts], **SAMPLED)) == [
        texts[0] for texts in alone
    ]


def test_streamed_prompts_are_interleaved_and_say_what_the_plain_ones_say(client: httpx.Client) -> None:
    plain = complete(client, ["one", "two"], n=2, echo=True, **SAMPLED)
    *chunks, usage, done = events_of(complete(client, ["one", "two"], n=2, echo=True, **SAMPLED, **USAGE))
    texts = [""] * 4
    for chunk in chunks:
        assert chunk["object"] == "text_completion"
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == texts_of(plain)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-4:]] == ["length"] * 4
    assert usage["usage"] == plain.json()["usage"]
    assert done == "[DONE]"


def test_echo_puts_the_prompt_before_what_is_said(client: httpx.Client) -> None:
    said = text_of(complete(client, TEXT))
    assert text_of(complete(client, TEXT, echo=True)) == TEXT + said
    assert text_of(complete(client, token_ids(TEXT), echo=True)) == TEXT + said
    first, *_ = events_of(complete(client, TEXT, echo=True, stream=True))
    assert first["choices"][0]["text"].startswith(TEXT)


def test_a_stop_string_across_tokens_ends_a_completion_and_is_not_looked_for_in_the_echo(client: httpx.Client) -> None:
    whole = text_of(complete(client, TEXT, max_tokens=24))
    stop = whole[5:8]
    cut = complete(client, TEXT, max_tokens=24, stop=[stop])
    assert text_of(cut) == whole[: whole.index(stop)]
    assert cut.json()["choices"][0]["finish_reason"] == "stop"
    streamed = events_of(complete(client, TEXT, max_tokens=24, stop=stop, stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed[:-1]) == whole[: whole.index(stop)]
    assert (
        text_of(complete(client, TEXT, echo=True, stop="Mary")) == TEXT + whole[: len(text_of(complete(client, TEXT)))]
    )


def test_a_completion_of_a_session_reads_its_prompt_as_it_is_and_learns_its_answer(client: httpx.Client) -> None:
    name = new_name()
    first = complete(client, TEXT, session_id=name)
    usage = first.json()["usage"]
    assert first.headers["x-session-version"] == "1"
    assert first.json()["session"]["position"] == usage["prompt_tokens_details"]["cache_write_tokens"]
    # The answer's last token and the end of the text wait for what comes next, as a conversation's do.
    assert session_of(client, name)["position"] == 1 + len(token_ids(TEXT)) + 5
    second = complete(client, " and then", session_id=name).json()
    assert second["session"]["version"] == 2
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == first.json()["session"]["position"]
    assert second["usage"]["prompt_tokens"] == first.json()["session"]["position"] + 2 + len(token_ids(" and then"))
    end = tiny_checkpoint().tokenizer.special.end
    answered = token_ids_of(client, TEXT)
    fed = [bos(), *token_ids(TEXT), *answered, end, *token_ids(" and then")]
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    assert second["choices"][0]["text"] == answer(new_core(), Sequence("a", fed, params)).text


def token_ids_of(client: httpx.Client, prompt: str) -> tuple[int, ...]:
    """What the engine answers to a prompt, as ids."""
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    return answer(new_core(), Sequence("a", [bos(), *token_ids(prompt)], params)).token_ids


def test_a_completion_is_no_entry_of_the_ledger(client: httpx.Client, session_id: str) -> None:
    said = ask(client, "Hi", session_id=session_id).json()["choices"][0]["message"]["content"]
    assert complete(client, TEXT, session_id=session_id).status_code == 200
    messages = [user("Hi"), {"role": "assistant", "content": said}, user("and?")]
    assert ask(client, "", session_id=session_id, messages=messages, history="match").status_code == 200


def test_choices_of_a_session_are_learned_but_for_the_first_by_none(client: httpx.Client) -> None:
    one, several = new_name(), new_name()
    complete(client, TEXT, session_id=one, **SAMPLED)
    first, second = texts_of(complete(client, TEXT, session_id=several, n=2, **SAMPLED))
    assert first != second
    assert session_of(client, one)["tokens_digest"] == session_of(client, several)["tokens_digest"]


def test_a_read_only_completion_remembers_and_leaves_no_trace(client: httpx.Client, session_id: str) -> None:
    assert_refused(complete(client, TEXT, session_id=session_id, read_only=True), 404, "session_not_found")
    complete(client, TEXT, session_id=session_id)
    before = session_of(client, session_id)
    answered = complete(client, " and", session_id=session_id, read_only=True).json()
    assert answered["session"]["committed"] is False
    assert answered["usage"]["prompt_tokens_details"]["cached_tokens"] == before["position"]
    assert session_of(client, session_id) == before


def test_a_repeated_completion_is_answered_from_the_store_with_its_echo(client: httpx.Client, session_id: str) -> None:
    key = {"Idempotency-Key": "once"}
    asked: dict[str, Any] = {"session_id": session_id, "echo": True, "n": 2, **SAMPLED}
    first = complete(client, TEXT, key, **asked)
    again = complete(client, TEXT, key, **asked)
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    *chunks, _ = events_of(complete(client, TEXT, key, stream=True, **asked))
    assert [chunk["choices"][0]["text"] for chunk in chunks[:2]] == texts_of(first)
    assert chunks[2]["session"] == first.json()["session"]
    assert session_of(client, session_id)["version"] == 1
    assert_refused(complete(client, "another", key, **asked), 409, "idempotency_mismatch")


def test_without_a_session_nothing_is_kept(server: ThreadedServer, client: httpx.Client) -> None:
    before = client.get("/v1/sessions?limit=1000").json()
    assert texts_of(complete(client, ["a", "b"], n=2)) == texts_of(complete(client, ["a", "b"], n=2))
    assert client.get("/v1/sessions?limit=1000").json() == before
    assert server.num_slots_in_use == 0


@pytest.mark.parametrize(
    ("prompt", "code", "param"),
    [
        (None, "invalid_request", "prompt"),
        (7, "invalid_request", "prompt"),
        ({"text": "x"}, "invalid_request", "prompt"),
        ([True], "invalid_request", "prompt[0]"),
        ([1.0], "invalid_request", "prompt[0]"),
        (["a", 1], "invalid_request", "prompt[1]"),
        ([1, "a"], "invalid_request", "prompt[1]"),
        ([1, [2]], "invalid_request", "prompt[1]"),
        ([[1], ["a"]], "invalid_request", "prompt[1][0]"),
        ([[[1]]], "invalid_request", "prompt[0][0]"),
        ([-1], "invalid_request", "prompt"),
        ([[3], [10**6]], "invalid_request", "prompt"),
        ([10**400], "invalid_request", "prompt"),
        ("", "empty_prompt", "prompt"),
        ([], "empty_prompt", "prompt"),
        ([[]], "empty_prompt", "prompt[0]"),
        (["a", ""], "empty_prompt", "prompt[1]"),
    ],
)
def test_a_prompt_that_is_none_is_refused_by_name(client: httpx.Client, prompt: Any, code: str, param: str) -> None:
    assert_refused(complete(client, prompt), 400, code, param)


def test_a_prompt_of_bos_alone_is_empty(client: httpx.Client) -> None:
    assert_refused(complete(client, [bos()]), 400, "empty_prompt", "prompt")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"suffix": "x"}, "unsupported_parameter", "suffix"),
        ({"best_of": 2}, "unsupported_parameter", "best_of"),
        ({"messages": [user("Hi")]}, "unsupported_parameter", "messages"),
        ({"history": "match"}, "unsupported_parameter", "history"),
        ({"on_divergence": "rewind"}, "unsupported_parameter", "on_divergence"),
        ({"max_completion_tokens": 3}, "unsupported_parameter", "max_completion_tokens"),
        ({"use_beam_search": True}, "unsupported_parameter", "use_beam_search"),
        ({"sesion_id": "x"}, "invalid_request", "sesion_id"),
        ({"echo": 1}, "invalid_request", "echo"),
        ({"n": 17}, "invalid_request", "n"),
        ({"max_tokens": 10**9}, "invalid_request", "max_tokens"),
        ({"temperature": -1}, "invalid_request", "temperature"),
        ({"read_only": True}, "invalid_request", "read_only"),
        ({"session_id": "s", "prompt": ["a", "b"]}, "invalid_request", "prompt"),
        ({"model": "gpt-4"}, "model_not_found", None),
    ],
)
def test_what_a_completion_cannot_have_is_refused_by_name(
    client: httpx.Client, fields: dict[str, Any], code: str, param: str | None
) -> None:
    refused = complete(client, fields.pop("prompt", TEXT), **fields)
    assert_refused(refused, 404 if code == "model_not_found" else 400, code, param)


def test_values_that_ask_for_nothing_are_fine_and_other_names_are_listed(client: httpx.Client) -> None:
    neutral: dict[str, Any] = {
        "suffix": None,
        "best_of": 1,
        "history": "new",
        "on_divergence": "error",
        "messages": None,
    }
    response = complete(client, TEXT, prompt_cache_key="k", **neutral)
    assert response.status_code == 200, response.text
    assert response.headers["x-ignored-parameters"] == "prompt_cache_key"


def test_more_prompts_than_slots_take_turns_and_more_than_there_is_room_for_are_refused(model: Path) -> None:
    with (
        serving(model, max_num_sequences="2", max_num_waiting="3") as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        assert len(texts_of(complete(client, ["a"] * 5))) == 5
        assert_refused(complete(client, ["a"] * 6), 400, "invalid_request", "prompt")
        assert_refused(complete(client, ["a"] * 3, n=2), 400, "invalid_request", "n")
        assert server.num_slots_in_use == 0

"""Log-probabilities over HTTP: the model's own, of answers and of prompts, whole, streamed and replayed."""

from typing import Any

import httpx
import pytest
import torch

from engine.sampling.sampling_params import SamplingParams
from engine.sequence import Sequence
from tests.engine.harness import answer, new_core
from tests.server.harness import ThreadedServer, ask, assert_refused, events_of, new_name, sdk, user
from tests.tiny import tiny_checkpoint

ANSWER: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
TOLERANCE = 1e-6


def complete(client: httpx.Client, prompt: Any, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    response = client.post("/v1/completions", json={"prompt": prompt, **ANSWER, **fields}, headers=headers)
    assert response.status_code == 200, response.text
    return response


def logprobs_of(response: Any) -> dict[str, Any]:
    (choice,) = response.json()["choices"]
    told: dict[str, Any] = choice["logprobs"]
    return told


def token_ids(text: str) -> list[int]:
    return tiny_checkpoint().tokenizer.encode(text)


def bos() -> int:
    return tiny_checkpoint().tokenizer.special.bos


def believed(fed: list[int]) -> torch.Tensor:
    """[T, V]: the model's log-probabilities after each token, by one forward of its own."""
    logits: torch.Tensor = tiny_checkpoint().model(torch.tensor([fed])).logits
    return logits[0].double().log_softmax(1)


def of_each(fed: list[int], num_last: int) -> list[float]:
    """Of the last tokens of `fed`, each after those before it."""
    beliefs = believed(fed)
    return [float(beliefs[index - 1, fed[index]]) for index in range(len(fed) - num_last, len(fed))]


def pieces(ids: list[int]) -> list[str]:
    """Of ids that are text one by one."""
    return [tiny_checkpoint().tokenizer.decode_bytes(token_id).decode() for token_id in ids]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_the_log_likelihood_of_a_batch_of_prompts_is_the_models_own(client: httpx.Client, max_tokens: int) -> None:
    """As lm-eval asks for it; as ids and as texts."""
    texts = ["Mary went to the garden.", "The code", "a"]
    for prompts in (texts, [token_ids(text) for text in texts]):
        response = complete(client, prompts, echo=True, logprobs=1, max_tokens=max_tokens)
        for choice, text in zip(response.json()["choices"], texts, strict=True):
            own, told = token_ids(text), choice["logprobs"]
            assert told["tokens"][: len(own)] == pieces(own)
            assert told["token_logprobs"][0] is None
            assert told["top_logprobs"][0] is None
            expected = of_each([bos(), *own], len(own) - 1)
            assert told["token_logprobs"][1 : len(own)] == pytest.approx(expected, abs=TOLERANCE)
            beliefs = believed([bos(), *own])
            for index in range(1, len(own)):
                top = told["top_logprobs"][index]
                assert max(top.values()) == pytest.approx(float(beliefs[index].max()), abs=TOLERANCE)
                assert top[told["tokens"][index]] == told["token_logprobs"][index] or len(top) == 1
            assert {len(column) for column in told.values()} == {len(own) + max_tokens}
            assert choice["finish_reason"] == "length"
        assert response.json()["usage"]["completion_tokens"] == max_tokens * len(texts)


def test_a_prompt_that_brings_its_own_bos_is_told_all_but_that(client: httpx.Client) -> None:
    ids = [bos(), *token_ids("Mary went")]
    told = logprobs_of(complete(client, ids, echo=True, logprobs=0, max_tokens=0))
    assert told["tokens"] == ["<bos>", *pieces(ids[1:])]
    assert told["token_logprobs"][0] is None
    assert told["token_logprobs"][1:] == pytest.approx(of_each(ids, len(ids) - 1), abs=TOLERANCE)
    assert [list(top) for top in told["top_logprobs"][1:]] == [[token] for token in told["tokens"][1:]]


def test_max_tokens_of_0_says_the_prompt_and_nothing_else_plain_and_streamed(client: httpx.Client) -> None:
    response = complete(client, ["Who", "is it"], echo=True, logprobs=2, max_tokens=0)
    first, second = response.json()["choices"]
    assert (first["text"], second["text"]) == ("Who", "is it")
    *chunks, _ = events_of(complete(client, ["Who", "is it"], echo=True, logprobs=2, max_tokens=0, stream=True))
    assert [chunk["choices"][0]["logprobs"] for chunk in chunks] == [first["logprobs"], second["logprobs"], None, None]
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Who", "is it", "", ""]
    assert_refused(
        client.post("/v1/completions", json={"prompt": "a", "max_tokens": 0}), 400, "invalid_request", "max_tokens"
    )


def test_the_tokens_of_an_answer_are_told_with_their_alternatives(client: httpx.Client) -> None:
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    own = token_ids("The ball is")
    written = answer(new_core(), Sequence("a", [bos(), *own], params))
    response = complete(client, "The ball is", logprobs=3)
    told = logprobs_of(response)
    assert told["tokens"] == pieces(list(written.token_ids))
    expected = of_each([bos(), *own, *written.token_ids], 8)
    assert told["token_logprobs"] == pytest.approx(expected, abs=TOLERANCE)
    assert all(3 <= len(top) <= 4 for top in told["top_logprobs"])
    assert [max(top.values()) for top in told["top_logprobs"]] == told["token_logprobs"], "greedy takes the likeliest"
    assert "".join(told["tokens"]) == response.json()["choices"][0]["text"]


@pytest.mark.parametrize("prompt", ["Mary went", "Ünï 😀 so"])
def test_offsets_are_where_tokens_stand_in_the_text(client: httpx.Client, prompt: str) -> None:
    response = complete(client, prompt, echo=True, logprobs=0)
    text, told = response.json()["choices"][0]["text"], logprobs_of(response)
    offsets = [*told["text_offset"], len(text)]
    assert offsets[0] == 0
    for index, token in enumerate(told["tokens"]):
        if not token.startswith("bytes:"):
            assert text[offsets[index] : offsets[index + 1]] == token
    alone = logprobs_of(complete(client, prompt, logprobs=0))
    assert alone["text_offset"] == [offset - len(prompt) for offset in told["text_offset"][-8:]]


def test_tokens_that_are_no_text_are_called_by_their_bytes_and_special_ones_by_their_names(
    client: httpx.Client,
) -> None:
    special = tiny_checkpoint().tokenizer.special
    told = logprobs_of(complete(client, [special.user, *token_ids("😀"), special.end], echo=True, logprobs=0))
    assert told["tokens"][0] == "<user>"
    smile = told["tokens"][1 : 1 + len(token_ids("😀"))]
    assert smile == [f"bytes:\\x{byte:02x}" for byte in "😀".encode()]
    assert told["text_offset"][1:5] == [0, 0, 0, 0]
    assert told["tokens"][1 + len(smile)] == "<end>"
    assert told["text_offset"][1 + len(smile)] == 1


def test_in_a_session_a_prompt_is_as_likely_as_the_memory_makes_it(client: httpx.Client) -> None:
    name = new_name()
    first, more = token_ids("Mary went to the garden."), token_ids(" Where is Mary?")
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    written = answer(new_core(), Sequence("a", [bos(), *first], params)).token_ids
    complete(client, first, session_id=name)
    fed = [bos(), *first, *written, tiny_checkpoint().tokenizer.special.end, *more]
    for read_only in (True, False):
        asked = {"session_id": name, "echo": True, "logprobs": 0, "max_tokens": 0, "read_only": read_only}
        told = logprobs_of(complete(client, more, None, **asked))
        assert told["tokens"] == pieces(more)
        assert told["token_logprobs"][0] is None
        assert told["token_logprobs"][1:] == pytest.approx(of_each(fed, len(more) - 1), abs=TOLERANCE)
    # The second one was learned, and nothing after it.
    assert complete(client, "x", session_id=name).json()["usage"]["prompt_tokens"] == len(fed) + 1 + len(token_ids("x"))


def test_several_choices_share_what_is_told_of_their_prompt(client: httpx.Client) -> None:
    fields: dict[str, Any] = {"echo": True, "logprobs": 1, "temperature": 1, "seed": 3}
    alone = [complete(client, text, **fields).json()["choices"][0]["logprobs"] for text in ("Mary went", "Who")]
    choices = complete(client, ["Mary went", "Who"], n=2, **fields).json()["choices"]
    for index, text in enumerate(("Mary went", "Who")):
        num_own = len(token_ids(text))
        for choice in choices[2 * index : 2 * index + 2]:
            told = choice["logprobs"]["token_logprobs"][1:num_own]
            assert told == pytest.approx(alone[index]["token_logprobs"][1:num_own], abs=TOLERANCE)
    assert choices[0]["logprobs"]["tokens"] == alone[0]["tokens"]
    assert choices[1]["logprobs"]["tokens"] != alone[0]["tokens"]


def chat(client: httpx.Client, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return ask(client, "Where is Mary?", headers, **{**ANSWER, "logprobs": True, "top_logprobs": 2, **fields})


def content_of(response: httpx.Response) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = response.json()["choices"][0]["logprobs"]["content"]
    return content


def test_chat_is_told_of_its_tokens_as_the_model_believes_them(server: ThreadedServer) -> None:
    checkpoint = tiny_checkpoint()
    tokenizer, chat_format = checkpoint.tokenizer, checkpoint.chat_format
    fed = [
        *chat_format.session_start(tokenizer),
        *chat_format.message(tokenizer, "user", "Where is Mary?"),
        *chat_format.generation_prompt(tokenizer),
    ]
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    written = list(answer(new_core(), Sequence("a", fed, params)).token_ids)
    with sdk(server.base_url) as library:
        completion = library.chat.completions.create(
            model="atlas-tiny",
            messages=[user("Where is Mary?")],
            max_tokens=8,
            temperature=0,
            logprobs=True,
            top_logprobs=5,
            extra_body={"ignore_eos": True},
        )
    choice = completion.choices[0]
    content = choice.logprobs.content
    assert [each.logprob for each in content] == pytest.approx(of_each([*fed, *written], 8), abs=TOLERANCE)
    assert b"".join(bytes(each.bytes) for each in content).decode() == choice.message.content
    assert "".join(each.token for each in content) == choice.message.content
    for each in content:
        assert len(each.top_logprobs) == 5
        values = [other.logprob for other in each.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert (each.top_logprobs[0].token, each.top_logprobs[0].logprob) == (each.token, each.logprob)


def test_without_top_logprobs_only_the_tokens_themselves_are_told(client: httpx.Client) -> None:
    assert [each["top_logprobs"] for each in content_of(chat(client, top_logprobs=None))] == [[]] * 8
    assert ask(client, "Hi", logprobs=False).json()["choices"][0]["logprobs"] is None
    assert ask(client, "Hi").json()["choices"][0]["logprobs"] is None


def test_a_chunk_is_told_of_the_tokens_whose_text_it_says(client: httpx.Client) -> None:
    whole = chat(client)
    *chunks, _ = events_of(chat(client, stream=True))
    parts = [chunk["choices"][0] for chunk in chunks]
    assert [each for part in parts[:-1] for each in part["logprobs"]["content"]] == content_of(whole)
    for part in parts[:-1]:
        assert "".join(each["token"] for each in part["logprobs"]["content"]) == part["delta"]["content"]
    assert parts[-1]["logprobs"] is None

    text = complete(client, "Mary", echo=True, logprobs=1)
    *pieces_of_text, _ = events_of(complete(client, "Mary", echo=True, logprobs=1, stream=True))
    streamed: dict[str, list[Any]] = {name: [] for name in logprobs_of(text)}
    for chunk in pieces_of_text[:-1]:
        told = chunk["choices"][0]["logprobs"]
        assert "".join(told["tokens"]) == chunk["choices"][0]["text"]
        for name, column in told.items():
            streamed[name] += column
    assert streamed == logprobs_of(text)


def test_text_that_is_held_back_holds_back_what_is_told_of_it_and_hidden_text_is_never_told(
    client: httpx.Client,
) -> None:
    whole = ask(client, "Where is Mary?", **{**ANSWER, "max_tokens": 24}).json()["choices"][0]["message"]["content"]
    # Held for three characters, and then not what comes.
    almost, stop = whole[4:7] + "\0", whole[12:15]
    fields: dict[str, Any] = {"max_tokens": 24, "stop": [almost, stop]}
    plain = chat(client, **fields)
    said = plain.json()["choices"][0]["message"]["content"]
    assert said == whole[: whole.index(stop)]
    told = "".join(each["token"] for each in content_of(plain))
    assert told.startswith(said)
    assert len("".join(each["token"] for each in content_of(plain)[:-1])) < len(said) or told == said
    text, tokens = "", ""
    *chunks, _ = events_of(chat(client, stream=True, **fields))
    for chunk in chunks[:-1]:
        text += chunk["choices"][0]["delta"]["content"]
        told_now = chunk["choices"][0]["logprobs"]
        tokens += "".join(each["token"] for each in told_now["content"]) if told_now else ""
        assert text.startswith(tokens) or tokens == told
    assert (text, tokens) == (said, told)


def test_a_replayed_answer_is_told_as_it_was_plain_and_streamed(client: httpx.Client) -> None:
    for path, body in (
        ("/v1/chat/completions", {"messages": [user("Hi")], "logprobs": True, "top_logprobs": 2}),
        ("/v1/completions", {"prompt": "Hi", "logprobs": 2, "echo": True}),
    ):
        name = new_name()
        asked = {**ANSWER, **body, "session_id": name}
        first = client.post(path, json=asked, headers={"Idempotency-Key": "k"})
        again = client.post(path, json=asked, headers={"Idempotency-Key": "k"})
        assert again.headers["idempotent-replayed"] == "true"
        assert again.json() == first.json()
        streamed = client.post(path, json={**asked, "stream": True}, headers={"Idempotency-Key": "k"})
        part, end, _ = events_of(streamed)
        assert part["choices"][0]["logprobs"] == first.json()["choices"][0]["logprobs"]
        assert end["choices"][0]["logprobs"] is None


def test_a_long_prompt_is_told_whole_plain_and_streamed(client: httpx.Client) -> None:
    """So long that telling it is not done where others wait."""
    ids = [20 + index % 50 for index in range(3000)]
    asked: dict[str, Any] = {"echo": True, "logprobs": 1, "max_tokens": 1}
    whole = logprobs_of(complete(client, ids, **asked))
    assert len(whole["tokens"]) == 3001
    assert whole["token_logprobs"][1:3000] == pytest.approx(of_each([bos(), *ids], 2999), abs=TOLERANCE)
    first, *_ = events_of(complete(client, ids, stream=True, **asked))
    assert first["choices"][0]["logprobs"] == whole


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"top_logprobs": 2}, "top_logprobs"),
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("/v1/chat/completions", {"logprobs": 2}, "logprobs"),
        ("/v1/completions", {"logprobs": 21}, "logprobs"),
        ("/v1/completions", {"logprobs": -1}, "logprobs"),
        ("/v1/completions", {"logprobs": True}, "logprobs"),
        ("/v1/completions", {"logprobs": 20, "echo": True, "prompt": [7] * 6242}, "logprobs"),
    ],
)
def test_a_number_of_alternatives_out_of_range_is_refused_by_name(
    client: httpx.Client, path: str, fields: dict[str, Any], param: str
) -> None:
    body = {"messages": [user("Hi")]} if "chat" in path else {"prompt": "Hi"}
    assert_refused(client.post(path, json={**body, **fields}), 400, "invalid_request", param)


def test_one_request_is_not_told_more_numbers_than_a_server_has_room_for(client: httpx.Client) -> None:
    """Each of them alone is within what one prompt may be told."""
    body = {"prompt": [[65] * 6000] * 9, "echo": True, "logprobs": 20, "max_tokens": 0}
    assert_refused(client.post("/v1/completions", json=body), 400, "invalid_request", "logprobs")

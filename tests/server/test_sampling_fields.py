"""The fields by which a request chooses among the model's tokens, over HTTP: each has the effect that its name says."""

from typing import Any

import httpx
import pytest

from tests.server.harness import ThreadedServer, ask, sdk, user

LONG: dict[str, Any] = {"max_tokens": 24, "ignore_eos": True}


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def token_ids_of(client: httpx.Client, text: str) -> list[int]:
    token_ids: list[int] = client.post("/tokenize", json={"text": text}).json()["tokens"]
    return token_ids


@pytest.mark.parametrize(
    "fields",
    [
        {"presence_penalty": 2},
        {"frequency_penalty": 2.0},
        {"repetition_penalty": 1.5},
        {"min_p": 1.0, "temperature": 1.0, "seed": 3},
    ],
)
def test_a_penalty_changes_the_answer_and_a_neutral_one_does_not(client: httpx.Client, fields: dict[str, Any]) -> None:
    base: dict[str, Any] = {name: value for name, value in fields.items() if name in ("temperature", "seed")}
    neutral: dict[str, Any] = {
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "repetition_penalty": 1,
        "min_p": 0,
        "logit_bias": {},
    }
    without = text_of(ask(client, "Hi", **LONG, **base))
    assert text_of(ask(client, "Hi", **LONG, **base, **neutral)) == without
    assert text_of(ask(client, "Hi", **LONG, **fields)) != without


def test_min_p_of_one_is_greedy_whatever_the_temperature(client: httpx.Client) -> None:
    greedy = text_of(ask(client, "Hi", **LONG))
    assert text_of(ask(client, "Hi", **LONG, temperature=2, min_p=1)) == greedy


def test_a_bias_forces_and_bans_tokens_through_the_stock_library(server: ThreadedServer, client: httpx.Client) -> None:
    first, second = token_ids_of(client, "q") + token_ids_of(client, "z")

    def said(bias: int) -> str | None:
        with sdk(server.base_url) as library:
            answer = library.chat.completions.create(
                model="atlas-tiny",
                messages=[user("Hi")],
                logit_bias={str(first): bias, str(second): 50},
                max_tokens=9,
            )
        text: str | None = answer.choices[0].message.content
        return text

    assert said(100) == "q" * 9
    assert said(-100) == "z" * 9


def test_a_stop_token_ends_the_answer_before_itself(client: httpx.Client) -> None:
    (token_id,) = token_ids_of(client, "q")
    forced: dict[str, Any] = {"logit_bias": {str(token_id): 100}, "stop_token_ids": [token_id]}
    response = ask(client, "Hi", **LONG, **forced)
    assert text_of(response) == ""
    assert response.json()["choices"][0]["finish_reason"] == "stop"
    assert text_of(ask(client, "Hi", **LONG, **forced, min_tokens=3)) == "qqq"

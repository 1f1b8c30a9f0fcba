"""LiteLLM's functions, as a proxy or an agent calls them, with `openai/` and `hosted_vllm/` before the model's name."""

import json
import os
import subprocess
import sys
from typing import Any

import httpx
import pytest

from tests.server.harness import ThreadedServer, session_of

# Else it asks the network for prices when it is imported.
OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
PREFIXES = ("openai", "hosted_vllm")


@pytest.fixture(scope="module")
def all_told(server: ThreadedServer) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.foreign.litellm_program", server.base_url, *PREFIXES]
    done = subprocess.run(command, env={**os.environ, **OFFLINE}, stdout=subprocess.PIPE, check=True, timeout=120)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.fixture(params=PREFIXES)
def told(all_told: dict[str, Any], request: pytest.FixtureRequest) -> Any:
    return all_told[request.param]


def test_whole_and_streamed_answers_are_the_same_on_a_loop_and_off_it(told: Any) -> None:
    whole = told["whole"]
    assert whole["finish_reason"] == "length"
    assert whole["num_tokens"][1] == 6
    assert told["on a loop"] == whole
    assert told["streamed"]["texts"] == whole["texts"] == [told["streamed on a loop"]]
    assert told["streamed"]["num_tokens"] == whole["num_tokens"]


def test_a_session_is_a_header_or_a_field(client: httpx.Client, all_told: dict[str, Any]) -> None:
    for prefix, told in all_told.items():
        assert session_of(client, prefix)["version"] == 2
        by_header, by_field = told["session by header"], told["session by field"]
        assert by_header["num_cached_tokens"] == 0
        assert by_field["num_cached_tokens"] >= sum(by_header["num_tokens"]) - 1


def test_sampling_options_reach_the_server(told: Any) -> None:
    first, second = told["drawn"]
    assert first["texts"] == second["texts"]
    assert first["texts"] != told["whole"]["texts"]
    assert len(set(told["three choices"]["texts"])) == 3


def test_a_text_is_continued_whole_and_streamed(told: Any) -> None:
    assert told["text"]
    assert told["text streamed"] == told["text"]


def test_refusals_are_its_own_errors_and_say_what_is_refused(told: Any) -> None:
    kind, message = told["tools"]
    assert kind == "BadRequestError"
    assert "tools is not supported" in message
    kind, message = told["another model"]
    assert kind == "NotFoundError"
    assert "GET /v1/models" in message
    assert told["embedding"][0] == "NotFoundError"

"""`stream_options.continuous_usage_stats`, with which vLLM's clients count tokens while they come."""

from itertools import pairwise
from typing import Any

import httpx
import pytest

from tests.server.harness import events_of, user

RUNNING = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
WAYS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [user("Where is Mary?")]},
    "/v1/completions": {"prompt": ["Where is Mary?", "Who"]},
}


def streamed(client: httpx.Client, path: str, **fields: Any) -> list[Any]:
    body = {**WAYS[path], "max_tokens": 6, "temperature": 0, "ignore_eos": True, **fields}
    return events_of(client.post(path, json=body).raise_for_status())


@pytest.mark.parametrize("path", WAYS)
@pytest.mark.parametrize("num_choices", [1, 2])
def test_every_chunk_says_what_was_used_up_to_it(client: httpx.Client, path: str, num_choices: int) -> None:
    *chunks, last, _ = streamed(client, path, n=num_choices, **RUNNING)
    for kind in ("prompt_tokens", "completion_tokens"):
        # Of several prompts not all may have been read when one is answered.
        counts = [chunk["usage"][kind] for chunk in chunks]
        assert counts[0] >= 1
        assert all(before <= after for before, after in pairwise(counts))
    ends = [chunk for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    assert [chunk["usage"] for chunk in ends] == [last["usage"]] * len(ends)
    assert last["usage"]["completion_tokens"] == 6 * len(ends)
    plain = streamed(client, path, n=num_choices, stream=True, stream_options={"include_usage": True})
    # Which answer's turn it is may differ, not what it says.
    said, said_plainly = ([chunk["choices"][0] for chunk in each] for each in (chunks, plain[:-2]))
    for index in range(len(ends)):
        assert [part for part in said if part["index"] == index] == [
            part for part in said_plainly if part["index"] == index
        ]


@pytest.mark.parametrize("path", WAYS)
def test_without_the_usage_there_is_none_on_the_way(client: httpx.Client, path: str) -> None:
    events = streamed(client, path, stream=True, stream_options={"continuous_usage_stats": True})
    assert all("usage" not in event for event in events[:-1])


def test_an_answer_that_is_told_again_has_it_too(client: httpx.Client, session_id: str) -> None:
    body = {**WAYS["/v1/chat/completions"], "max_tokens": 6, "session_id": session_id, **RUNNING}
    first, again = (
        events_of(client.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": "once"})) for _ in range(2)
    )
    assert [event["usage"] for event in again[:-1]] == [first[-2]["usage"]] * 3

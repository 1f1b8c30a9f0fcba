"""Conversations and responses over a server's death, and between tenants."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.server.forked import ForkedServer, Forker
from tests.server.harness import ThreadedServer, assert_refused, sdk, serving, session_of, tiny_folder

GREEDY: dict[str, Any] = {"model": "atlas-tiny", "max_output_tokens": 6, "temperature": 0}


def test_a_conversation_and_an_earlier_response_go_on_after_a_kill(forker: Forker, tmp_path: Path) -> None:
    settings = {"model": str(tiny_folder(tmp_path)), "store": f"local://{tmp_path / 'sessions'}"}
    url = "http://127.0.0.1:{}".format
    with ForkedServer(forker, tmp_path, **settings) as server:
        with sdk(url(server.port)) as library:
            conversation = library.conversations.create(items=[{"role": "user", "content": "Tim has the ball."}])
            said = library.responses.create(input="Who?", conversation=conversation.id, **GREEDY)
            root = library.responses.create(input="one", **GREEDY)
            trunk = library.responses.create(input="two", previous_response_id=root.id, **GREEDY)
            expected = library.responses.create(input="left", previous_response_id=root.id, store=False, **GREEDY)
        server.kill9()
        server.start()
        with sdk(url(server.port)) as library:
            assert library.responses.retrieve(said.id).output_text == said.output_text
            further = library.responses.create(input="And now?", conversation=conversation.id, **GREEDY)
            assert further.model_extra["session"]["version"] == 3
            further = library.responses.create(input="three", previous_response_id=trunk.id, **GREEDY)
            assert further.model_extra["session"]["version"] == 3
            branch = library.responses.create(input="left", previous_response_id=root.id, **GREEDY)
            assert branch.output_text == expected.output_text
            assert branch.model_extra["session"]["version"] == 1


@pytest.fixture(scope="module")
def guarded(model: Path) -> Iterator[ThreadedServer]:
    with serving(model, api_keys="acme:acme-key, globex:globex-key", tenant_max_sessions="3") as running:
        yield running


def test_another_tenants_responses_and_conversations_are_like_absent_ones(guarded: ThreadedServer) -> None:
    with sdk(guarded.base_url, api_key="acme-key") as acme, sdk(guarded.base_url, api_key="globex-key") as globex:
        conversation = acme.conversations.create()
        response = acme.responses.create(input="our secret", conversation=conversation.id, **GREEDY)

        def told(response_id: str, conversation_id: str) -> list[str]:
            requests: list[Callable[[], Any]] = [
                lambda: globex.responses.retrieve(response_id),
                lambda: globex.responses.retrieve(response_id, stream=True),
                lambda: globex.responses.delete(response_id),
                lambda: globex.responses.create(input="?", previous_response_id=response_id, **GREEDY),
                lambda: globex.responses.create(input="?", previous_response_id=response_id, store=False, **GREEDY),
                lambda: globex.responses.create(input="?", conversation=conversation_id, **GREEDY),
                lambda: globex.conversations.retrieve(conversation_id),
                lambda: globex.conversations.update(conversation_id, metadata={}),
                lambda: globex.conversations.delete(conversation_id),
                lambda: globex.conversations.items.create(conversation_id, items=[{"role": "user", "content": "a"}]),
            ]
            answers = []
            for request in requests:
                with pytest.raises(openai.NotFoundError) as refused:
                    request()
                answers.append(refused.value.response.text)
            return answers

        absent = response.id.replace(conversation.id, "conv_absent")
        assert told(response.id, conversation.id) == told(absent, "conv_absent")
        assert acme.responses.retrieve(response.id).output_text == response.output_text
        # What one tenant cannot see, it can name.
        with httpx.Client(base_url=guarded.base_url, headers={"Authorization": "Bearer globex-key"}) as client:
            assert client.get("/v1/sessions").json()["data"] == []


def test_sessions_behind_responses_count_and_what_is_not_stored_does_not(guarded: ThreadedServer) -> None:
    with sdk(guarded.base_url, api_key="globex-key") as library:
        responses = [library.responses.create(input="Hi", **GREEDY) for _ in range(3)]
        with pytest.raises(openai.APIStatusError) as full:
            library.responses.create(input="Hi", **GREEDY)
        assert full.value.code == "store_full"
        with pytest.raises(openai.APIStatusError) as full:
            library.conversations.create(items=[{"role": "user", "content": "a"}])
        assert full.value.code == "store_full"
        library.responses.create(input="Hi", store=False, **GREEDY)
        library.responses.create(input="Hi", previous_response_id=responses[0].id, **GREEDY)
        library.responses.delete(responses[1].id)
        library.responses.create(input="Hi", **GREEDY)


def test_items_that_are_learned_are_charged_as_other_reading_is(model: Path) -> None:
    with (
        serving(model, tenant_tokens_per_minute="60") as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        items = {"items": [{"role": "user", "content": "Mary went to the garden. " * 20}]}
        first = client.post("/v1/conversations", json=items)
        assert first.status_code == 200
        path = f"/v1/conversations/{first.json()['id']}/items"
        assert_refused(client.post(path, json=items), 429, "rate_limited")
        assert session_of(client, first.json()["id"])["version"] == 1

"""/v1/responses through the stock OpenAI library: memories kept, continued and branched without an extension."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response

from tests.server.harness import ThreadedServer, assert_refused, sdk, session_of, until

GREEDY: dict[str, Any] = {"model": "atlas-tiny", "max_output_tokens": 6, "temperature": 0}


@pytest.fixture
def library(server: ThreadedServer) -> Iterator[Any]:
    with sdk(server.base_url) as connected:
        yield connected


def post(client: httpx.Client, body: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
    return client.post("/v1/responses", json={**GREEDY, "input": "Hi", **body}, headers=headers)


def session_id_of(response: Any) -> str:
    session_id: str = response.model_extra["session"]["id"]
    return session_id


def test_a_response_has_the_shape_that_the_library_knows(library: Any) -> None:
    raw = library.responses.with_raw_response.create(
        input="Hi", instructions="Be brief.", metadata={"a": "b"}, user="u", **GREEDY
    )
    # Strictly: the library itself takes whatever comes.
    response = Response.model_validate(raw.http_response.json())
    assert response.status in ("completed", "incomplete")
    assert (response.model, response.instructions, response.metadata) == ("atlas-tiny", "Be brief.", {"a": "b"})
    (message,) = response.output
    assert message.type == "message"
    assert message.status == response.status
    assert response.output_text == message.content[0].text  # type: ignore[union-attr]
    usage = response.usage
    assert usage is not None
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.input_tokens_details.cached_tokens == 0
    assert usage.output_tokens_details.reasoning_tokens == 0
    assert raw.headers["x-session-version"] == "1"
    assert raw.headers["x-session-id"] in response.id


def test_a_response_says_what_a_chat_says(library: Any) -> None:
    chat = library.chat.completions.create(
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        model="atlas-tiny",
        max_tokens=6,
        temperature=0,
    )
    response = library.responses.create(input="Hi", instructions="Be brief.", **GREEDY)
    items = [
        {
            "role": "developer",
            "content": [{"type": "input_text", "text": "Be "}, {"type": "input_text", "text": "brief."}],
        },
        {"type": "message", "role": "user", "content": "Hi"},
    ]
    assert response.output_text == chat.choices[0].message.content
    assert library.responses.create(input=items, store=False, **GREEDY).output_text == response.output_text


def test_a_conversation_learns_and_its_items_are_learned_without_an_answer(library: Any, client: httpx.Client) -> None:
    told = [{"role": "user", "content": "Tim has the ball."}, {"role": "assistant", "content": "I see."}]
    conversation = library.conversations.create(metadata={"topic": "balls"}, items=told)
    assert conversation.id.startswith("conv_")
    response = library.responses.create(input="Who?", conversation=conversation.id, **GREEDY)
    assert response.conversation.id == conversation.id
    assert session_of(client, conversation.id)["version"] == 2

    # The same through a chat that brings a transcript.
    body = {"messages": [*told, {"role": "user", "content": "Who?"}], "max_tokens": 6, "temperature": 0}
    chat = client.post("/v1/chat/completions", json={**body, "session_id": f"{conversation.id}-chat"}).json()
    assert response.output_text == chat["choices"][0]["message"]["content"]
    digests = {session_of(client, name)["tokens_digest"] for name in (conversation.id, f"{conversation.id}-chat")}
    assert len(digests) == 1

    added = library.conversations.items.create(conversation.id, items=[{"role": "user", "content": "Ann has it now."}])
    assert [(item.role, item.content[0].text) for item in added.data] == [("user", "Ann has it now.")]
    assert session_of(client, conversation.id)["version"] == 3
    # An object names it too, and so does any session's id.
    again = library.responses.create(input="Who?", conversation={"id": f"{conversation.id}-chat"}, **GREEDY)
    assert session_id_of(again) == f"{conversation.id}-chat"


def test_conversations_are_told_changed_and_deleted(library: Any, client: httpx.Client) -> None:
    conversation = library.conversations.create(metadata={"topic": "demo"})
    response = library.responses.create(input="Hi", conversation=conversation.id, **GREEDY)
    told = library.conversations.retrieve(conversation.id)
    assert (told.id, told.object, told.metadata) == (conversation.id, "conversation", {"topic": "demo"})
    changed = library.conversations.update(conversation.id, metadata={"topic": "other"})
    assert changed.metadata == {"topic": "other"}
    # No new version: the last response is still what is gone on from.
    after = library.responses.create(input="And?", previous_response_id=response.id, **GREEDY)
    assert session_id_of(after) == conversation.id
    assert session_of(client, conversation.id)["metadata"] == {"topic": "other"}
    assert library.conversations.delete(conversation.id).deleted is True
    absent: list[Callable[[], Any]] = [
        lambda: library.conversations.retrieve(conversation.id),
        lambda: library.responses.create(input="Hi", conversation=conversation.id, **GREEDY),
        lambda: library.conversations.items.create(conversation.id, items=[{"role": "user", "content": "a"}]),
        lambda: library.responses.retrieve(after.id),
        lambda: library.responses.create(input="Hi", previous_response_id=after.id, **GREEDY),
    ]
    for gone in absent:
        with pytest.raises(openai.NotFoundError):
            gone()


def test_a_response_after_the_last_one_is_the_next_turn_of_its_session(library: Any, client: httpx.Client) -> None:
    first = library.responses.create(input="one", **GREEDY)
    second = library.responses.create(input="two", previous_response_id=first.id, **GREEDY)
    assert second.previous_response_id == first.id
    assert session_id_of(second) == session_id_of(first)
    session = session_of(client, session_id_of(first))
    assert (session["version"], session["ttl_seconds"]) == (2, 30 * 24 * 3600)
    for text in ("one", "two"):
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 6, "temperature": 0}
        client.post("/v1/chat/completions", json=body, headers={"X-Session-Id": f"{session_id_of(first)}-chat"})
    assert session_of(client, f"{session_id_of(first)}-chat")["tokens_digest"] == session["tokens_digest"]


def test_branches_differ_and_touch_neither_each_other_nor_where_they_came_from(
    library: Any, client: httpx.Client
) -> None:
    root = library.responses.create(input="one", **GREEDY)
    trunk = library.responses.create(input="two", previous_response_id=root.id, **GREEDY)
    before = session_of(client, session_id_of(trunk))
    left, right = (
        library.responses.create(input=text, previous_response_id=root.id, **GREEDY) for text in ("left", "right")
    )
    names = {session_id_of(response) for response in (trunk, left, right)}
    assert len(names) == 3
    assert session_of(client, session_id_of(trunk)) == {**before, "last_used": before["last_used"]}
    further = library.responses.create(input="three", previous_response_id=left.id, **GREEDY)
    assert session_id_of(further) == session_id_of(left)
    digests = [session_of(client, name)["tokens_digest"] for name in sorted(names)]
    assert len(set(digests)) == 3
    # A branch has learned what its root had, and nothing of the trunk.
    expected = f"{session_id_of(root)}-expected"
    for text in ("one", "left", "three"):
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 6, "temperature": 0}
        client.post("/v1/chat/completions", json=body, headers={"X-Session-Id": expected})
    assert session_of(client, expected)["tokens_digest"] == session_of(client, session_id_of(left))["tokens_digest"]
    assert left.usage.input_tokens_details.cached_tokens > 0


def test_many_go_on_from_one_response_at_once(server: ThreadedServer) -> None:
    async def ask() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="unused", max_retries=0) as library:
            root: Any = await library.responses.create(input="one", **GREEDY)
            return await asyncio.gather(
                *(
                    library.responses.create(input=f"branch {number}", previous_response_id=root.id, **GREEDY)
                    for number in range(5)
                )
            )

    branches = asyncio.run(ask())
    assert len({session_id_of(branch) for branch in branches}) == 5


def test_a_version_that_is_kept_no_more_is_refused_with_those_that_are(library: Any) -> None:
    first = response = library.responses.create(input="one", **GREEDY)
    for number in range(12):
        response = library.responses.create(input=f"{number}", previous_response_id=response.id, **GREEDY)
        if number == 5:
            assert library.responses.retrieve(first.id).output_text == first.output_text
        if number in (5, 11):
            with pytest.raises(openai.NotFoundError, match=r"not kept; \d+, \d+, \d+") as refused:
                library.responses.create(input="x", previous_response_id=first.id, **GREEDY)
            assert refused.value.code == "version_not_found"
    with pytest.raises(openai.NotFoundError) as forgotten:
        library.responses.retrieve(first.id)
    assert forgotten.value.code == "response_not_found"


def test_what_is_not_stored_leaves_nothing_and_may_read_what_a_session_knows(
    library: Any, client: httpx.Client
) -> None:
    lone = library.responses.create(input="Hi", store=False, **GREEDY)
    assert "session" not in lone.model_extra
    with pytest.raises(openai.NotFoundError):
        library.responses.create(input="Hi", previous_response_id=lone.id, **GREEDY)
    first = library.responses.create(input="one", **GREEDY)
    library.responses.create(input="two", previous_response_id=first.id, **GREEDY)
    before = session_of(client, session_id_of(first))
    read = library.responses.create(input="left", previous_response_id=first.id, store=False, **GREEDY)
    kept = library.responses.create(input="left", previous_response_id=first.id, **GREEDY)
    assert read.output_text == kept.output_text
    named = library.responses.create(input="Hi", conversation=session_id_of(first), store=False, **GREEDY)
    assert named.model_extra["session"]["committed"] is False
    assert session_of(client, session_id_of(first)) == before
    for response in (read, named):
        with pytest.raises(openai.NotFoundError):
            library.responses.retrieve(response.id)


@pytest.mark.parametrize("headers", [{"Idempotency-Key": "K"}, {"x-stainless-retry-count": "1"}])
@pytest.mark.parametrize("streams", [False, True])
def test_a_repeated_turn_is_answered_and_not_learned_again(
    library: Any, client: httpx.Client, headers: dict[str, str], streams: bool
) -> None:
    headers = {name: f"{value}-{streams}" if value == "K" else value for name, value in headers.items()}
    first = library.responses.create(input="one", **GREEDY)
    body = {"input": "two", "previous_response_id": first.id}
    once = post(client, body, {**headers, "x-stainless-retry-count": "0"})
    again = post(client, {**body, "stream": streams}, headers)
    assert again.headers["idempotent-replayed"] == "true"
    assert (once.json()["id"] in again.text) is True
    assert session_of(client, session_id_of(first))["version"] == 2


def test_a_key_finds_the_session_or_the_branch_that_its_first_request_has_begun(client: httpx.Client) -> None:
    key = {"Idempotency-Key": "begins-1"}
    first = post(client, {}, key)
    assert post(client, {}, key).json() == first.json()
    second = post(client, {"previous_response_id": first.json()["id"]}).json()
    assert second["session"]["version"] == 2
    key = {"Idempotency-Key": "branches-1"}
    branch = post(client, {"previous_response_id": first.json()["id"]}, key)
    assert branch.json()["session"]["id"] not in first.text
    assert post(client, {"previous_response_id": first.json()["id"]}, key).json() == branch.json()
    assert_refused(post(client, {"input": "other"}, key), 409, "idempotency_mismatch")


def test_the_last_response_can_be_deleted_then_the_one_before_it_and_the_session_with_the_first(
    library: Any, client: httpx.Client
) -> None:
    first = library.responses.create(input="one", **GREEDY)
    chain = session_id_of(first)
    before = session_of(client, chain)
    second = library.responses.create(input="two", previous_response_id=first.id, **GREEDY)
    with pytest.raises(openai.BadRequestError, match="stays learned") as refused:
        library.responses.delete(first.id)
    assert refused.value.code == "unsupported_operation"
    library.responses.delete(second.id)
    after = session_of(client, chain)
    assert (after["version"], after["tokens_digest"]) == (3, before["tokens_digest"])
    assert [each["version"] for each in client.get(f"/v1/sessions/{chain}/versions").json()["data"]] == [3, 1]
    for gone in (
        client.get(f"/v1/responses/{second.id}"),
        post(client, {"previous_response_id": second.id}),
        client.delete(f"/v1/responses/{second.id}"),
    ):
        assert gone.status_code == 404
    assert library.responses.retrieve(first.id).output_text == first.output_text
    library.responses.delete(first.id)
    assert client.get(f"/v1/sessions/{chain}").status_code == 404


def test_a_conversation_is_what_it_was_before_a_response_that_is_deleted(library: Any, client: httpx.Client) -> None:
    conversation = library.conversations.create()
    response = library.responses.create(input="Hi", conversation=conversation.id, **GREEDY)
    library.responses.delete(response.id)
    session = session_of(client, conversation.id)
    assert (session["version"], session["position"]) == (2, 0)
    told = library.responses.create(input="Hi", conversation=conversation.id, **GREEDY)
    assert told.output_text == response.output_text
    library.conversations.items.create(conversation.id, items=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.BadRequestError, match="read more since"):
        library.responses.delete(told.id)


def test_what_a_memory_cannot_do_is_refused_by_name(library: Any) -> None:
    conversation = library.conversations.create(items=[{"role": "user", "content": "a"}])
    response = library.responses.create(input="Hi", conversation=conversation.id, **GREEDY)
    refusals: list[Callable[[], Any]] = [
        lambda: library.responses.cancel(response.id),
        lambda: library.responses.input_items.list(response.id),
        lambda: library.conversations.items.list(conversation.id),
        lambda: library.conversations.items.retrieve("msg_1", conversation_id=conversation.id),
        lambda: library.conversations.items.delete("msg_1", conversation_id=conversation.id),
    ]
    for impossible in refusals:
        with pytest.raises(openai.BadRequestError) as refused:
            impossible()
        assert refused.value.code == "unsupported_operation"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"conversation": "c", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "assistant", "content": "a"}]}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "o"}]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 10**9}, "max_output_tokens"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "json_object"}}}, "text"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"include": ["what.ever"]}, "include[0]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "include": ["message.output_text.logprobs"]}, "top_logprobs"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"read_only": True}, "read_only"),
        ({"read_only": True, "store": True, "session_id": "s"}, "store"),
        ({"conversation": "a", "session_id": "b"}, "session_id"),
        ({"conversation": "a b"}, "session_id"),
        ({"sesion_id": "s"}, "sesion_id"),
        ({"history": "match"}, "history"),
    ],
)
def test_what_is_not_served_is_refused_by_its_name(client: httpx.Client, fields: dict[str, Any], param: str) -> None:
    response = post(client, fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_what_asks_for_nothing_is_taken_and_what_is_unknown_is_told(client: httpx.Client) -> None:
    neutral = {
        "background": False,
        "include": ["reasoning.encrypted_content"],
        "max_tool_calls": 3,
        "parallel_tool_calls": True,
        "reasoning": {"effort": None, "summary": None},
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "truncation": "auto",
    }
    unknown = {"prompt_cache_key": "k", "service_tier": "auto"}
    response = post(client, {**neutral, **unknown, "store": False})
    assert response.status_code == 200, response.text
    assert response.headers["x-ignored-parameters"] == "prompt_cache_key, service_tier"


def test_forged_and_absent_responses_are_the_same(library: Any, client: httpx.Client) -> None:
    response = library.responses.create(input="Hi", **GREEDY)
    version, mark, session_id = response.id.removeprefix("resp_").split("_", 2)
    forged = [
        f"resp_{version}_{'0' * 24}_{session_id}",
        f"resp_7_{mark}_{session_id}",
        f"resp_{version}_{mark}_absent",
        "resp_nothing",
        "x" * 300,
    ]
    answers = [client.get(f"/v1/responses/{name}") for name in forged]
    for answer in answers:
        assert_refused(answer, 404, "response_not_found")
    assert len({answer.text for answer in answers}) == 1
    for name in forged:
        assert_refused(post(client, {"previous_response_id": name}), 404, "response_not_found")


def test_an_extension_field_names_a_session_as_in_a_chat(library: Any, client: httpx.Client, session_id: str) -> None:
    spoken: list[Any] = []
    for text in ("one", "two"):
        spoken.append({"role": "user", "content": text})
        response = library.responses.create(input=spoken, extra_headers={"X-Session-Id": session_id}, **GREEDY)
        # As the library gives it back.
        spoken.extend(item.model_dump() for item in response.output)
    assert session_of(client, session_id)["version"] == 2
    # Who names the session goes on with it, or not at all.
    first = post(client, {"session_id": f"{session_id}-chain"}).json()
    named = {"session_id": f"{session_id}-chain", "previous_response_id": first["id"]}
    assert post(client, named).json()["session"]["version"] == 2
    assert_refused(post(client, named), 412, "version_conflict")
    unnamed = {"previous_response_id": first["id"]}
    assert_refused(post(client, unnamed, {"If-Match": "1"}), 412, "version_conflict")
    assert_refused(post(client, unnamed, {"If-Match": "2"}), 400, "invalid_request", "If-Match")
    assert_refused(post(client, {}, {"If-Match": "2"}), 400, "invalid_request", "If-Match")


def test_every_slot_is_free_after_all_this(server: ThreadedServer) -> None:
    until(lambda: server.num_slots_in_use == 0)


def test_a_query_that_has_no_effect_is_refused(client: httpx.Client) -> None:
    response_id = post(client, {"input": "Hi", **GREEDY}).json()["id"]
    conversation_id = client.post("/v1/conversations").json()["id"]
    for path in (f"/v1/responses/{response_id}", f"/v1/conversations/{conversation_id}"):
        assert_refused(client.get(path, params={"verbose": 1}), 400, "invalid_request", "verbose")
        assert_refused(client.delete(path, params={"force": 1}), 400, "invalid_request", "force")
        assert client.get(path).status_code == 200

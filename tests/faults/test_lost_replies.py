"""Replies that are lost on their way: the turn is learned once, and its client told once what it learned."""

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.faults.proxy import Judge, Proxy, is_whole_http, passes
from tests.redis_server import RedisServer
from tests.server.harness import ThreadedServer, ask, new_name, sdk, serving, session_of, until, user

NUM_TURNS = 100
HALF_A_STREAM = 600


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedServer]:
    store = f"local://{tmp_path_factory.mktemp('server') / 'sessions'}"
    with serving(model, store=store, lease_seconds="1") as running:
        yield running


@pytest.fixture
def client(server: ThreadedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.base_url, timeout=60) as connected:
        yield connected


def every(n: int, let_through: int = 0) -> Judge:
    """Condemns every n-th reply."""
    numbers = itertools.count(1)
    return lambda request: let_through if next(numbers) % n == 0 else None


def say(library: Any, session_id: str, text: str, *, stream: bool, **headers: str) -> str:
    """The answer, read to its end."""
    answer = library.chat.completions.create(
        model="atlas-tiny",
        messages=[user(text)],
        max_tokens=4,
        temperature=0,
        stream=stream,
        extra_body={"session_id": session_id},
        extra_headers={name.replace("_", "-"): value for name, value in headers.items()},
    )
    if not stream:
        return answer.choices[0].message.content or ""
    return "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)


def text_in(response: httpx.Response) -> str:
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def converse(base_url: str, session_id: str) -> list[str]:
    with sdk(base_url, max_retries=2) as library:
        return [say(library, session_id, f"turn {n}", stream=n % 2 == 1) for n in range(NUM_TURNS)]


def test_the_stock_library_behind_a_proxy_that_drops_every_third_reply_learns_what_it_would_have_learned(
    server: ThreadedServer, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the library's pause before it tries again is shortened: it has no part in what is learned."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.02)
    undisturbed, disturbed = new_name(), new_name()
    expected = converse(server.base_url, undisturbed)
    with Proxy(server.port, every(3), is_whole_http) as proxy:
        answers = converse(f"http://127.0.0.1:{proxy.port}", disturbed)
        # The first is lost of the third turn, then of every second one.
        assert proxy.num_cut == (NUM_TURNS - 1) // 2
    assert answers == expected
    told, wanted = session_of(client, disturbed), session_of(client, undisturbed)
    for name in ("version", "position", "tokens_digest"):
        assert told[name] == wanted[name], name
    assert told["version"] == NUM_TURNS


def respond(base_url: str, conversation_id: str) -> list[str]:
    """A chain of responses, and messages in between that are only told."""
    wanted = {"model": "atlas-tiny", "max_output_tokens": 4, "temperature": 0}
    said = []
    with sdk(base_url, max_retries=2) as library:
        last = library.responses.create(input="turn 0", conversation=conversation_id, **wanted)
        for n in range(1, 20):
            if n % 4 == 0:
                library.conversations.items.create(conversation_id, items=[user(f"told {n}")])
                last = library.responses.create(input=f"turn {n}", conversation=conversation_id, **wanted)
            else:
                last = library.responses.create(input=f"turn {n}", previous_response_id=last.id, **wanted)
            said.append(last.output_text)
    return said


def test_responses_and_items_whose_replies_are_lost_are_learned_once(
    server: ThreadedServer, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.02)
    undisturbed, disturbed = (client.post("/v1/conversations", json={}).json()["id"] for _ in range(2))
    expected = respond(server.base_url, undisturbed)
    with Proxy(server.port, every(3), is_whole_http) as proxy:
        assert respond(f"http://127.0.0.1:{proxy.port}", disturbed) == expected
        assert proxy.num_cut > 10
    told, wanted = session_of(client, disturbed), session_of(client, undisturbed)
    for name in ("version", "position", "tokens_digest"):
        assert told[name] == wanted[name], name
    assert told["version"] == 20 + 4


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_that_never_comes_is_asked_for_again_by_the_library_itself(
    server: ThreadedServer, client: httpx.Client, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.02)
    name, twin = new_name(), new_name()
    with Proxy(server.port, lambda request: None if b"retry-count: 2" in request else 0, is_whole_http) as proxy:
        with sdk(f"http://127.0.0.1:{proxy.port}", max_retries=2) as library:
            answer = say(library, name, "Hi", stream=stream)
        assert proxy.num_cut == 2
    assert answer == text_in(ask(client, "Hi", session_id=twin))
    assert session_of(client, name)["tokens_digest"] == session_of(client, twin)["tokens_digest"]


def test_a_stream_that_breaks_after_its_first_byte_is_the_callers_to_repeat_and_a_key_makes_that_safe(
    server: ThreadedServer, client: httpx.Client
) -> None:
    """The library has handed the stream over: it raises, and tries nothing. A call that is made anew without a key is
    a new turn: the text may have been said twice on purpose."""
    name = new_name()
    with (
        Proxy(server.port, every(1, HALF_A_STREAM), is_whole_http) as proxy,
        sdk(f"http://127.0.0.1:{proxy.port}", max_retries=2) as library,
    ):
        with pytest.raises((openai.APIConnectionError, httpx.HTTPError)):
            say(library, name, "Hi", stream=True, Idempotency_Key="k")
        assert proxy.num_cut == 1
        first = session_of(client, name)
        assert first["version"] == 1
        proxy.judge = passes
        repeated = say(library, name, "Hi", stream=True, Idempotency_Key="k")
        plain = ask(client, "Hi", {"Idempotency-Key": "k"}, session_id=name, model="atlas-tiny")
        assert repeated == text_in(plain)
        assert session_of(client, name) == first
        say(library, name, "Hi", stream=True)
    assert session_of(client, name)["version"] == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_retry_that_comes_while_the_first_try_still_runs_waits_for_it_and_learns_nothing_twice(
    server: ThreadedServer, client: httpx.Client, stream: bool
) -> None:
    """A client whose own patience ends first, and whose connection stays open, as behind a gateway."""
    name, twin = new_name(), new_name()
    fields: dict[str, Any] = {"session_id": name, "max_tokens": 60, "ignore_eos": True, "stream": stream}
    answers: list[httpx.Response] = []

    def first_try() -> None:
        answers.append(ask(client, "Hi", **fields))

    thread = threading.Thread(target=first_try)
    thread.start()
    until(lambda: server.num_slots_in_use == 1)
    second = ask(client, "Hi", {"x-stainless-retry-count": "1"}, **fields)
    thread.join()
    assert second.status_code == 200, second.text
    assert second.headers["idempotent-replayed"] == "true"
    if not stream:
        assert second.json() == answers[0].json()
    ask(client, "Hi", **{**fields, "session_id": twin})
    assert session_of(client, name)["tokens_digest"] == session_of(client, twin)["tokens_digest"]
    assert session_of(client, name)["version"] == 1


@pytest.mark.redis
@pytest.mark.parametrize("times", [1, 2])
def test_a_commits_reply_that_redis_sent_and_nobody_got_is_recognised_as_mine(
    model: Path, own_redis: RedisServer, times: int
) -> None:
    """Once: the library that speaks to Redis asks once more. Twice: the commit is tried anew and finds itself done."""
    lost = itertools.count()

    def loses(request: bytes) -> int | None:
        # What flips the head is the only script that is given one.
        is_flip = b"EVALSHA" in request and b'"committed"' in request
        return 0 if is_flip and next(lost) < times else None

    with (
        Proxy(own_redis.port) as proxy,
        serving(model, store=f"redis://127.0.0.1:{proxy.port}/0") as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        assert ask(client, "a", session_id="s").json()["session"]["version"] == 1
        proxy.judge = loses
        answer = ask(client, "b", {"Idempotency-Key": "k"}, session_id="s")
        assert answer.json()["session"]["version"] == 2
        assert proxy.num_cut == times
        proxy.judge = passes
        assert ask(client, "b", {"Idempotency-Key": "k"}, session_id="s").json() == answer.json()
        for text in ("a", "b"):
            ask(client, text, session_id="twin")
        assert session_of(client, "s")["tokens_digest"] == session_of(client, "twin")["tokens_digest"]


def _cut_inside(command: bytes, times: int) -> Callable[[bytes], int | None]:
    numbers = itertools.count()
    return lambda request: 700 if command in request and next(numbers) < times else None


@pytest.mark.redis
def test_a_redis_that_dies_in_the_middle_of_a_load_is_a_503_and_leaves_nothing_half_loaded(
    model: Path, own_redis: RedisServer
) -> None:
    with (
        Proxy(own_redis.port) as proxy,
        serving(model, store=f"redis://127.0.0.1:{proxy.port}/0", host_cache_bytes="0") as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        ask(client, "a", session_id="s")
        before = session_of(client, "s")
        for read_only in (False, True):
            proxy.judge = _cut_inside(b"\r\nGET\r\n", times=2)
            refused = ask(client, "b", session_id="s", read_only=read_only)
            assert refused.status_code == 503, refused.text
            assert refused.json()["error"]["code"] == "store_unavailable"
            assert server.num_slots_in_use == 0
        proxy.judge = passes
        assert session_of(client, "s") == before
        assert ask(client, "b", session_id="s").json()["session"]["version"] == 2


@pytest.mark.redis
def test_a_slow_redis_whose_words_come_in_crumbs_is_understood(model: Path, own_redis: RedisServer) -> None:
    with (
        Proxy(own_redis.port, delay_seconds=0.0001, piece_num_bytes=97) as proxy,
        serving(model, store=f"redis://127.0.0.1:{proxy.port}/0", host_cache_bytes="0") as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        for version in (1, 2, 3):
            assert ask(client, f"turn {version}", session_id="s").json()["session"]["version"] == version
        proxy.hang_up()
        assert ask(client, "turn 4", session_id="s").json()["session"]["version"] == 4

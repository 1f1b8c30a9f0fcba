"""What the stock library tries again by itself: it is told no by a server that is full, busy, absent or going away, and
its caller sees an answer."""

import asyncio
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.forked import ForkedServer, Forker
from tests.server.harness import ThreadedServer, open_stream, read_until, sdk, serving, user

GREEDY: dict[str, Any] = {"model": "atlas-tiny", "max_tokens": 4, "temperature": 0}
ENDLESS = {"stream": True, "max_tokens": 30_000, "ignore_eos": True}


class Statuses:
    """What the library was told, one status after the other."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def options(self) -> dict[str, Any]:
        http = openai.DefaultHttpxClient(event_hooks={"response": [self._saw]})
        return {"http_client": http, "max_retries": 8}

    def _saw(self, response: Any) -> None:
        self.seen.append(response.status_code)


def closed_after_the_first_refusal(connection: Any, statuses: Statuses) -> threading.Thread:
    def close() -> None:
        deadline = time.monotonic() + 20
        while not statuses.seen and time.monotonic() < deadline:
            time.sleep(0.01)
        connection.close()

    thread = threading.Thread(target=close)
    thread.start()
    return thread


def test_a_full_queue_is_a_pause(model: Path) -> None:
    with serving(model, max_num_sequences="1", max_num_waiting="0") as server:
        statuses = Statuses()
        with sdk(server.base_url, **statuses.options()) as library, open_stream(server.port, "a", ENDLESS) as running:
            read_until(running, b"data: ")
            closing = closed_after_the_first_refusal(running, statuses)
            answer = library.chat.completions.create(messages=[user("b")], **GREEDY)
            closing.join()
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert statuses.seen[0] == 429
    assert statuses.seen[-1] == 200


def test_a_session_that_others_write_is_a_pause_and_the_turn_is_learned_once(
    server: ThreadedServer, session_id: str
) -> None:
    statuses = Statuses()
    fields = {"session_id": session_id, **ENDLESS}
    with (
        sdk(server.base_url, **statuses.options()) as library,
        open_stream(server.port, "a", fields) as writing,
    ):
        read_until(writing, b"data: ")
        with open_stream(server.port, "b", fields) as waiting:
            waiting.settimeout(0.3)
            with pytest.raises(TimeoutError):
                waiting.recv(1)
            closing = [closed_after_the_first_refusal(connection, statuses) for connection in (waiting, writing)]
            answer = library.chat.completions.create(
                messages=[user("c")], extra_headers={"X-Session-Id": session_id}, **GREEDY
            )
            for thread in closing:
                thread.join()
    assert statuses.seen[0] == 409
    assert statuses.seen[-1] == 200
    assert answer.session["version"] == 1


def test_a_server_that_stops_and_comes_back_is_a_pause_and_the_session_goes_on(
    forker: Forker, model: Path, tmp_path: Path
) -> None:
    store = f"local://{tmp_path / 'sessions'}"
    statuses = Statuses()
    with ForkedServer(forker, tmp_path, model=str(model), store=store, drain_seconds="20") as server:
        base_url = f"http://127.0.0.1:{server.port}"
        with (
            sdk(base_url, default_headers={"X-Session-Id": "s"}, **statuses.options()) as library,
            ThreadPoolExecutor(1) as caller,
        ):
            library.chat.completions.create(messages=[user("one")], **GREEDY)
            with open_stream(server.port, "hold the server up", ENDLESS) as running:
                read_until(running, b"data: ")
                server.signal(signal.SIGTERM)
                while server.answers("/ready"):
                    time.sleep(0.01)
                second = caller.submit(library.chat.completions.create, messages=[user("two")], **GREEDY)
                while 503 not in statuses.seen:
                    time.sleep(0.01)
            server.wait_end()
            server.launch()
            assert second.result(60).session["version"] == 2
    assert statuses.seen[:2] == [200, 503]
    assert statuses.seen[-1] == 200


def test_what_may_not_be_tried_again_is_tried_once(server: ThreadedServer, session_id: str) -> None:
    statuses = Statuses()
    with sdk(server.base_url, default_headers={"X-Session-Id": session_id}, **statuses.options()) as library:
        library.chat.completions.create(messages=[user("a")], **GREEDY)
        departing = [user("a"), {"role": "assistant", "content": "I never said this"}, user("b")]
        with pytest.raises(openai.ConflictError) as refused:
            library.chat.completions.create(messages=departing, **GREEDY)
    assert refused.value.code == "session_diverged"
    assert statuses.seen == [200, 409]


def test_the_library_on_a_loop_pauses_like_the_other(model: Path) -> None:
    """As many calls as there are places, and as many again that are told to come back."""

    async def ask_all(base_url: str) -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="unused", max_retries=20) as connected:
            client: Any = connected
            questions = (client.chat.completions.create(messages=[user(str(n))], **GREEDY) for n in range(8))
            return list(await asyncio.gather(*questions))

    with serving(model, max_num_sequences="2", max_num_waiting="2") as server:
        answers = asyncio.run(ask_all(server.base_url))
    assert [answer.object for answer in answers] == ["chat.completion"] * 8

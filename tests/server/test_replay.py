"""POST /v1/sessions/{id}/replay: a session made anew from its token log, over HTTP, when there is need for it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.engine.sessions_harness import text_of
from tests.redis_server import RedisServer
from tests.server.forked import ForkedServer, Forker
from tests.server.harness import (
    ThreadedServer,
    ask,
    assert_refused,
    events_of,
    new_name,
    serving,
    session_of,
    until,
)
from tests.tiny import save_tiny_checkpoint, tiny_config

DOCUMENT = text_of(12)
EVENTS = {"Accept": "text/event-stream"}
TEXT = {"Content-Type": "text/plain"}


@pytest.fixture(scope="module")
def logging_server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedServer]:
    store = f"local://{tmp_path_factory.mktemp('replay') / 'sessions'}"
    with serving(model, store=store, token_log="1", ingest_commit_tokens="100", lease_seconds="1") as running:
        yield running


@pytest.fixture
def client(logging_server: ThreadedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=logging_server.base_url, timeout=60) as connected:
        yield connected


def path(session_id: str) -> str:
    return f"/v1/sessions/{session_id}/replay"


def read(client: httpx.Client, session_id: str, document: bytes = DOCUMENT) -> dict[str, Any]:
    """The session after a document and a turn."""
    ingest = client.post(f"/v1/sessions/{session_id}/ingest", content=document, headers=TEXT)
    assert ingest.status_code == 200, ingest.text
    assert ask(client, "one", session_id=session_id).status_code == 200
    return session_of(client, session_id)


def test_a_replay_answers_with_the_session_as_it_was_and_its_new_version(client: httpx.Client, session_id: str) -> None:
    before = read(client, session_id)
    answer = ask(client, "two", session_id=session_id, read_only=True).json()["choices"]
    response = client.post(path(session_id))
    assert response.status_code == 200, response.text
    body, after = response.json(), session_of(client, session_id)
    assert (body["object"], body["done"], body["tokens"]) == ("session.replay", True, before["position"])
    assert (body["session"]["version"], body["session"]["position"]) == (before["version"] + 1, before["position"])
    assert response.headers["x-session-version"] == str(after["version"]) == str(before["version"] + 1)
    for name in ("position", "tokens_digest", "bytes", "token_log", "created", "open_ingest"):
        assert after[name] == before[name]
    assert ask(client, "two", session_id=session_id, read_only=True).json()["choices"] == answer


def test_progress_events_grow_up_to_the_result(client: httpx.Client, session_id: str) -> None:
    before = read(client, session_id)
    *progress, result, done = events_of(client.post(path(session_id), headers=EVENTS))
    assert done == "[DONE]"
    fed = [step["tokens"] for step in progress]
    assert fed == sorted(set(fed))
    assert len(fed) >= 1
    assert {step["total_tokens"] for step in progress} == {before["position"]}
    assert {step["object"] for step in progress} == {"session.replay.progress"}
    assert result["done"] is True
    assert result["session"]["version"] == session_of(client, session_id)["version"]


def test_a_session_tells_how_long_its_log_is(client: httpx.Client, session_id: str) -> None:
    assert client.post("/v1/sessions", json={"id": session_id}).json()["token_log"] == {"bytes": 0}
    told = read(client, session_id)
    assert 4 * told["position"] < told["token_log"]["bytes"] < 4 * told["position"] + 200 * told["version"] + 600
    listed = client.get("/v1/sessions").json()["data"]
    assert [each["token_log"] for each in listed if each["id"] == session_id] == [told["token_log"]]


def test_a_server_without_the_setting_keeps_no_log(server: ThreadedServer, session_id: str) -> None:
    with httpx.Client(base_url=server.base_url, timeout=60) as client:
        assert_refused(client.post(path(session_id)), 404, "session_not_found")
        ask(client, "one", session_id=session_id)
        assert session_of(client, session_id)["token_log"] is None
        for headers in ({}, EVENTS):
            response = client.post(path(session_id), headers=headers)
            assert_refused(response, 400, "invalid_request")
            assert "no token log" in response.json()["error"]["message"]


def test_a_replay_honours_if_match_and_idempotency_keys(client: httpx.Client, session_id: str) -> None:
    version = read(client, session_id)["version"]
    assert_refused(client.post(path(session_id), headers={"If-Match": '"99"'}), 412, "version_conflict")
    headers = {"If-Match": f'"{version}"', "Idempotency-Key": "once"}
    first = client.post(path(session_id), headers=headers).json()
    assert client.post(path(session_id), headers=headers).json() == first
    assert session_of(client, session_id)["version"] == version + 1
    assert client.post(path(session_id), headers={"Idempotency-Key": "once"}).json() == first


def test_a_client_that_hangs_up_during_a_replay_leaves_the_session_as_it_was(
    client: httpx.Client, session_id: str, logging_server: ThreadedServer
) -> None:
    long = text_of(120)
    assert client.post(f"/v1/sessions/{session_id}/ingest", content=long, headers=TEXT).status_code == 200
    before = session_of(client, session_id)
    with client.stream("POST", path(session_id), headers=EVENTS) as response:
        assert b"session.replay.progress" in next(response.iter_bytes())
    until(lambda: logging_server.num_slots_in_use == 0)
    assert session_of(client, session_id) == before
    assert ask(client, "one", session_id=session_id).json()["session"]["version"] == before["version"] + 1


@pytest.mark.redis
def test_a_part_that_redis_has_lost_is_410_until_the_session_is_replayed(
    model: Path, redis_server: RedisServer
) -> None:
    store = f"{redis_server.url}?prefix=replay"
    with (
        serving(model, store=store, token_log="1", host_cache_bytes="0") as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
        redis.Redis(port=redis_server.port, protocol=2) as raw,
    ):
        before = read(client, "s")
        answer = ask(client, "two", session_id="s", read_only=True).json()["choices"]
        parts = list(raw.scan_iter("replay:*:p:*"))
        assert raw.delete(*parts) == len(parts) > 0
        assert_refused(ask(client, "two", session_id="s"), 410, "state_lost")
        assert client.post(path("s")).status_code == 200
        assert session_of(client, "s")["tokens_digest"] == before["tokens_digest"]
        assert ask(client, "two", session_id="s", read_only=True).json()["choices"] == answer
        assert client.delete("/v1/sessions/s").status_code == 200
        assert list(raw.scan_iter("replay:*:log:*")) == []


def test_another_models_session_is_422_until_it_is_replayed(model: Path, tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path / "other", tiny_config(), seed=1)
    store = f"local://{tmp_path / 'sessions'}"
    with serving(model, store=store, token_log="1") as server, httpx.Client(base_url=server.base_url) as client:
        before = read(client, "s")
    with serving(tmp_path / "other", store=store) as server, httpx.Client(base_url=server.base_url) as client:
        assert_refused(ask(client, "two", session_id="s"), 422, "state_model_mismatch")
        *_, result, _ = events_of(client.post(path("s"), headers=EVENTS))
        assert result["session"]["version"] == before["version"] + 1
        assert session_of(client, "s")["tokens_digest"] == before["tokens_digest"]
        assert ask(client, "two", session_id="s").json()["session"]["version"] == before["version"] + 2


def test_a_server_killed_during_a_replay_leaves_the_session_as_it_was(
    forker: Forker, model: Path, tmp_path: Path
) -> None:
    settings = {"store": f"local://{tmp_path / 'sessions'}", "token_log": "1", "ingest_commit_tokens": "60"}
    with ForkedServer(forker, tmp_path, model=str(model), lease_seconds="0.5", **settings) as server:
        before = read(server.client, name := new_name(), text_of(40))
        for num_tokens in (1, 500):
            with server.client.stream("POST", path(name), headers=EVENTS) as response:
                events = (json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line)
                reached = next(each for each in events if each["tokens"] >= num_tokens)
                assert reached["object"] == "session.replay.progress"
                server.kill9()
            server.start()
            assert session_of(server.client, name) == before
        result = server.client.post(path(name)).json()
        assert result["session"]["version"] == before["version"] + 1
        assert session_of(server.client, name)["tokens_digest"] == before["tokens_digest"]

"""What a store may do to a session's next request: each with its status and code, and the session unharmed."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis

from tests.redis_server import RedisServer
from tests.server.harness import (
    ThreadedServer,
    ask,
    assert_refused,
    events_of,
    open_stream,
    read_until,
    serving,
    session_of,
    until,
)
from tests.tiny import save_tiny_checkpoint, tiny_config

ENDLESS = {"max_tokens": 30_000, "ignore_eos": True, "session_id": "s"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture
def on_redis(model: Path, own_redis: RedisServer) -> Iterator[ThreadedServer]:
    with serving(model, store=own_redis.url, lease_seconds="1") as running:
        yield running


@pytest.fixture
def client(on_redis: ThreadedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=on_redis.base_url, timeout=60) as connected:
        yield connected


def test_another_models_snapshot_is_refused_with_both_fingerprints_and_left_alone(
    model: Path, directory: Path, tmp_path: Path
) -> None:
    save_tiny_checkpoint(tmp_path / "other", tiny_config(), seed=1)
    fingerprints = []
    for folder, is_first in ((model, True), (tmp_path / "other", False), (model, False)):
        with (
            serving(folder, store=f"local://{directory}") as server,
            httpx.Client(base_url=server.base_url, timeout=60) as client,
        ):
            fingerprints.append(client.get("/version").json()["fingerprint"])
            if is_first:
                ask(client, "a", session_id="s")
                before = session_of(client, "s")
            elif folder != model:
                for refused in (
                    ask(client, "b", session_id="s"),
                    ask(client, "b", session_id="s", stream=True),
                    ask(client, "b", session_id="s", read_only=True),
                    client.post("/v1/sessions/s/ingest", content=b"text"),
                ):
                    assert_refused(refused, 422, "state_model_mismatch")
                    assert refused.headers["x-should-retry"] == "false"
                    assert fingerprints[0] in refused.json()["error"]["message"]
                    assert fingerprints[1] in refused.json()["error"]["message"]
                assert session_of(client, "s") == before
                metrics = client.get("/metrics").text
                assert 'atlas_session_restore_failures_total{reason="state_model_mismatch"} 4.0' in metrics
            else:
                assert session_of(client, "s") == before
                assert ask(client, "b", session_id="s").json()["session"]["version"] == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_snapshot_is_found_and_the_last_whole_version_named(
    model: Path, directory: Path, damage: str
) -> None:
    with (
        serving(model, store=f"local://{directory}") as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        for text in ("a", "b"):
            ask(client, text, session_id="s")
        ask(client, "x", session_id="bystander")
    blobs = [path for path in (directory / "blobs").rglob("*") if path.is_file()]
    assert len(blobs) == 3
    newest = sorted(blobs, key=lambda path: path.stat().st_mtime_ns)[1]
    raw = bytearray(newest.read_bytes())
    if damage == "gone":
        newest.unlink()
    else:
        raw[len(raw) // 2] ^= 1
        newest.write_bytes(raw[:-2000] if damage == "cut" else raw)
    with (
        serving(model, store=f"local://{directory}") as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        status, code = (410, "state_lost") if damage == "gone" else (500, "state_corrupt")
        for stream in (False, True):
            refused = ask(client, "c", session_id="s", stream=stream)
            assert_refused(refused, status, code)
            assert refused.json()["error"]["last_whole_version"] == 1
        if status == 500:
            assert refused.headers["x-should-retry"] == "false"
            assert [path.name for path in (directory / "quarantine").iterdir()] == [newest.name]
        listed = {session["id"]: session["version"] for session in client.get("/v1/sessions").json()["data"]}
        assert listed == {"bystander": 1, "s": 2}
        assert ask(client, "y", session_id="bystander").json()["session"]["version"] == 2


@pytest.mark.redis
@pytest.mark.parametrize("stream", [False, True])
def test_a_redis_that_stops_in_mid_turn_fails_the_turn_and_harms_nothing(
    on_redis: ThreadedServer, client: httpx.Client, own_redis: RedisServer, stream: bool
) -> None:
    ask(client, "a", session_id="s")
    before = session_of(client, "s")
    fields = {**ENDLESS, "max_tokens": 200, "stream": stream}
    with open_stream(on_redis.port, "b", fields) as turn:
        until(lambda: on_redis.num_slots_in_use == 1)
        own_redis.stop()
        answer = read_until(turn, b"store_unavailable")
    if stream:
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b'"finish_reason":"' not in answer
        assert b"[DONE]" not in answer
    else:
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer.lower()
    assert_refused(client.get("/ready"), 503, "store_unavailable")
    assert client.get("/health").status_code == 200
    assert ask(client, "stateless").status_code == 200
    assert_refused(ask(client, "c", session_id="s"), 503, "store_unavailable")
    own_redis.start()
    until(lambda: client.get("/ready").status_code == 200)
    assert session_of(client, "s") == before
    assert ask(client, "b", session_id="s").json()["session"]["version"] == 2


@pytest.mark.redis
def test_a_redis_that_hangs_is_not_felt_by_others(
    on_redis: ThreadedServer, client: httpx.Client, own_redis: RedisServer
) -> None:
    ask(client, "a", session_id="s")
    own_redis.pause()
    try:
        with open_stream(on_redis.port, "b", {"session_id": "s"}) as turn:
            assert ask(client, "stateless").status_code == 200
            assert client.get("/health").status_code == 200
            assert b" 503 " in read_until(turn, b"store_unavailable")
    finally:
        own_redis.resume()
    until(lambda: ask(client, "c", session_id="s").status_code == 200)
    assert session_of(client, "s")["version"] == 2


@pytest.mark.redis
def test_a_session_that_was_flushed_away_is_gone_and_nothing_crashes(
    client: httpx.Client, own_redis: RedisServer
) -> None:
    ask(client, "a", session_id="s")
    with redis.Redis.from_url(own_redis.url) as direct:
        direct.flushall()
    assert_refused(client.get("/v1/sessions/s"), 404, "session_not_found")
    assert_refused(ask(client, "b", session_id="s", read_only=True), 404, "session_not_found")
    begun = ask(client, "b", session_id="s").json()
    assert begun["session"]["version"] == 1
    assert begun["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.mark.redis
def test_a_full_redis_is_a_507_and_the_session_stays(client: httpx.Client, own_redis: RedisServer) -> None:
    ask(client, "a", session_id="s")
    before = session_of(client, "s")
    with redis.Redis.from_url(own_redis.url) as direct:
        direct.config_set("maxmemory", 1)
        refused = ask(client, "b", session_id="s")
        assert_refused(refused, 507, "store_full")
        assert refused.headers["x-should-retry"] == "false"
        direct.config_set("maxmemory", 0)
    assert session_of(client, "s") == before
    assert ask(client, "b", session_id="s").json()["session"]["version"] == 2


@pytest.mark.redis
def test_a_session_can_be_deleted_from_a_full_redis(client: httpx.Client, own_redis: RedisServer) -> None:
    ask(client, "a", session_id="s")
    with redis.Redis.from_url(own_redis.url) as direct:
        direct.config_set("maxmemory", 1)
        assert client.delete("/v1/sessions/s").status_code == 200
        assert_refused(client.get("/v1/sessions/s"), 404, "session_not_found")
        assert direct.keys("*default/s*") == []
        direct.config_set("maxmemory", 0)


@pytest.mark.redis
def test_a_damaged_snapshot_that_cannot_be_put_aside_is_told_all_the_same(
    client: httpx.Client, own_redis: RedisServer
) -> None:
    for text in ("a", "b"):
        ask(client, text, session_id="s")
    with redis.Redis.from_url(own_redis.url) as direct:
        for name in direct.keys("*default/s*:p:*"):
            damaged = bytearray(direct.get(name))
            damaged[-2000] ^= 1
            direct.set(name, bytes(damaged))
    with redis.Redis.from_url(own_redis.url) as direct:
        direct.config_set("maxmemory", 1)
        assert_refused(client.get("/v1/sessions/s/export"), 500, "state_corrupt")
        direct.config_set("maxmemory", 0)


@pytest.mark.redis
def test_two_servers_on_one_redis_take_turns(model: Path, client: httpx.Client, own_redis: RedisServer) -> None:
    with (
        serving(model, store=own_redis.url, lease_seconds="1") as other,
        httpx.Client(base_url=other.base_url, timeout=60) as there,
    ):
        for number, where in enumerate((client, there, client, there, there, client), start=1):
            assert ask(where, f"turn {number}", session_id="s").json()["session"]["version"] == number
        assert session_of(client, "s") == session_of(there, "s")
        assert client.post("/v1/sessions/s/ingest", content=b"a line\n" * 40).status_code == 200
        answer = ask(there, "what did it say?", session_id="s").json()
        assert answer["session"]["version"] == session_of(client, "s")["version"]


@pytest.mark.redis
def test_a_failing_commit_is_told_inside_the_stream(model: Path, own_redis: RedisServer) -> None:
    with (
        serving(model, store=own_redis.url) as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 200, "ignore_eos": True}
        with client.stream("POST", "/v1/chat/completions", json={**body, "session_id": "s", "stream": True}) as answer:
            own_redis.stop()
            answer.read()
        *_, last = events_of(answer)
        assert last["error"]["code"] == "store_unavailable"
        own_redis.start()
        assert_refused(client.get("/v1/sessions/s"), 404, "session_not_found")

"""The life of the process: how it starts or says why not, what it tells while it loads, and how it ends."""

import json
import re
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from atlas_model.checkpoint import load_checkpoint
from atlas_model.state import session_num_bytes
from server.__main__ import main
from tests.atlas_model.native_cases import delta_config
from tests.redis_server import RedisServer, redis_is_installed
from tests.server.forked import ForkedServer, Forker
from tests.server.harness import ask, assert_refused, open_stream, read_until, serving, session_of, until
from tests.server_process import tiny_server
from tests.tiny import save_tiny_checkpoint, tiny_config

ENDLESS = {"max_tokens": 30_000, "ignore_eos": True, "stream": True, "session_id": "s"}


@pytest.fixture
def server(forker: Forker, model: Path, tmp_path: Path) -> Iterator[ForkedServer]:
    settings = {"model": str(model), "store": f"local://{tmp_path / 'sessions'}"}
    with ForkedServer(forker, tmp_path, **settings) as running:
        yield running


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """Not started."""
    if not redis_is_installed():
        pytest.skip("redis-server is not installed")
    redis = RedisServer(tmp_path / "redis")
    yield redis
    redis.kill()


def fails_to_start(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 1, **environment: str) -> str:
    """The one line that says why."""
    started = time.monotonic()
    assert main(["--port", "0", *arguments], environment) == status
    assert time.monotonic() - started < 10
    lines = capsys.readouterr().err.splitlines()
    if status == 2:
        # Without settings there is no format either.
        lines = [line.removeprefix("atlas-serve: ") for line in lines if line.startswith("atlas-serve: ")]
    else:
        told = [json.loads(line) for line in lines]
        lines = [line["message"] for line in told if line["level"] == "critical"]
    assert len(lines) == 1
    return lines[0]


def test_a_setting_that_nobody_knows_stops_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert "ATLAS_PROT" in fails_to_start(capsys, status=2, ATLAS_PROT="1")
    assert "failpoint" in fails_to_start(capsys, status=2, ATLAS_FAILPOINTS="nonsense")


def test_a_folder_that_is_no_checkpoint_stops_the_process(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = fails_to_start(capsys, "--store", "memory://", "--model", str(tmp_path))
    assert f"{tmp_path} is not a checkpoint" in line


def test_a_device_that_is_not_there_stops_the_process(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    fails_to_start(capsys, "--store", "memory://", "--model", str(model), "--device", "cuda:99")


def test_room_for_less_than_one_state_stops_the_process(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    num_bytes = session_num_bytes(load_checkpoint(model).model.config)
    arguments = ("--store", "memory://", "--model", str(model), "--inflight-state-bytes")
    line = fails_to_start(capsys, *arguments, str(num_bytes - 1))
    assert line.endswith(f"--inflight-state-bytes must hold at least one state, which has {num_bytes} bytes")


def test_kernels_that_are_required_and_cannot_be_had_stop_the_process(
    capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    line = fails_to_start(capsys, "--store", "memory://", "--model", str(model), "--native-kernels", "require")
    assert "the plain delta rule" in line


@pytest.mark.redis
def test_a_redis_that_is_down_stops_the_process(
    capsys: pytest.CaptureFixture[str], model: Path, own_redis: RedisServer
) -> None:
    url = own_redis.url.replace("redis://", "redis://:hunter2@")
    line = fails_to_start(capsys, "--store", url, "--model", str(model))
    assert "Redis cannot be reached" in line
    assert "hunter2" not in line


@pytest.mark.redis
def test_a_redis_that_may_evict_stops_the_process(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    if not redis_is_installed():
        pytest.skip("redis-server is not installed")
    with RedisServer(tmp_path, "--maxmemory-policy", "allkeys-lru") as redis:
        assert "allkeys-lru" in fails_to_start(capsys, "--store", redis.url, "--model", str(model), "--store-optional")


def test_a_second_server_on_one_directory_stops(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    store = f"local://{tmp_path / 'sessions'}"
    with serving(model, store=store):
        assert "another server" in fails_to_start(capsys, "--store", store, "--model", str(model))


@pytest.mark.redis
def test_an_optional_store_may_come_later(model: Path, own_redis: RedisServer) -> None:
    with (
        serving(model, store=own_redis.url, store_optional="1") as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        assert client.get("/health").status_code == 200
        assert_refused(client.get("/ready"), 503, "store_unavailable")
        for refused in (ask(client, "Hi", session_id="s"), client.get("/v1/sessions"), client.get("/v1/sessions/s")):
            assert_refused(refused, 503, "store_unavailable")
            assert refused.headers["retry-after"] == "1"
        assert ask(client, "Hi").status_code == 200
        own_redis.start()
        until(lambda: client.get("/ready").status_code == 200)
        assert ask(client, "Hi", session_id="s").json()["session"]["version"] == 1


def test_the_start_is_announced_in_one_line(server: ForkedServer) -> None:
    lines = [line for line in map(json.loads, server.log.splitlines()) if line["message"] == "listening"]
    assert len(lines) == 1
    assert lines[0]["url"] == f"http://127.0.0.1:{server.port}"
    assert lines[0]["model"] == "atlas-tiny"
    assert lines[0]["num_parameters"] > 10_000
    assert re.fullmatch(r"local:///\S+/sessions", lines[0]["store"])


def test_the_start_is_announced_to_people_in_their_words(forker: Forker, model: Path, tmp_path: Path) -> None:
    with ForkedServer(forker, tmp_path, model=str(model), store="memory://", log_format="text") as server:
        line = rf"atlas-serve listening on http://127\.0\.0\.1:{server.port} · model atlas-tiny \([\d,]+ parameters\)"
        assert len(re.findall(line + r" · store memory://", server.log)) == 1


def test_while_the_model_loads_the_server_is_alive_and_not_ready(forker: Forker, tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path / "large", tiny_config(width=384, feed_forward_width=4096))
    server = ForkedServer(forker, tmp_path, model=str(tmp_path / "large"), store="memory://")
    try:
        server.launch()
        until(lambda: server.answers("/health"))
        assert_refused(server.client.get("/ready"), 503, "loading")
        assert_refused(ask(server.client, "Hi"), 503, "loading")
        server.wait_ready()
        assert ask(server.client, "Hi").status_code == 200
    finally:
        server.kill9()
        server.client.close()


def test_the_server_is_not_ready_before_the_kernels_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, began, may_end = tmp_path / "compiler", tmp_path / "began", tmp_path / "may_end"
    waits = f"touch {began}; while [ ! -e {may_end} ]; do sleep 0.02; done; echo 'error: no luck' >&2; exit 1"
    compiler.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then exit 0; fi\n{waits}\n')
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_tiny_checkpoint(tmp_path / "tiny", delta_config())
    with closing(tiny_server(tmp_path)) as server:
        server.launch()
        until(began.exists)
        assert server.answers("/health")
        assert not server.answers("/ready")
        may_end.touch()
        server.wait_ready()
        (line,) = [each for each in server.log.splitlines() if "decode steps" in each]
        assert '"level": "warning"' in line
        assert f"torch's operators: {compiler} failed: error: no luck" in line


def test_sigterm_lets_what_runs_finish_and_takes_nothing_new(server: ForkedServer) -> None:
    ask(server.client, "a", session_id="s")
    with open_stream(server.port, "b", {**ENDLESS, "max_tokens": 300}) as stream:
        read_until(stream, b"data: ")
        server.signal(signal.SIGTERM)
        until(lambda: server.client.get("/ready").status_code == 503)
        assert_refused(server.client.get("/ready"), 503, "draining")
        refused = ask(server.client, "c")
        assert_refused(refused, 503, "draining")
        assert refused.headers["retry-after"] == "1"
        assert server.client.get("/health").status_code == 200
        answer = read_until(stream, b"[DONE]")
    assert b'"version":2' in answer
    server.wait_end()
    assert server.log.splitlines()[-1] == "exit 0"
    server.start()
    assert session_of(server.client, "s")["version"] == 2


def test_what_does_not_finish_in_time_is_cut_short_and_committed(forker: Forker, model: Path, tmp_path: Path) -> None:
    settings = {"model": str(model), "store": f"local://{tmp_path / 'sessions'}", "drain_seconds": "0.3"}
    with ForkedServer(forker, tmp_path, **settings) as server:
        with open_stream(server.port, "b", ENDLESS) as stream:
            read_until(stream, b"data: ")
            server.signal(signal.SIGTERM)
            answer = read_until(stream, b"[DONE]")
        assert b'"finish_reason":"length"' in answer
        server.wait_end()
        server.start()
        assert session_of(server.client, "s")["version"] == 1


def test_a_second_sigterm_ends_at_once_and_tears_nothing(server: ForkedServer) -> None:
    ask(server.client, "a", session_id="s")
    before = session_of(server.client, "s")
    with open_stream(server.port, "b", ENDLESS) as stream:
        read_until(stream, b"data: ")
        server.signal(signal.SIGTERM)
        until(lambda: server.client.get("/ready").status_code == 503)
        server.signal(signal.SIGTERM)
        started = time.monotonic()
        server.wait_end()
        assert time.monotonic() - started < 10
    server.start()
    assert session_of(server.client, "s") == before


def test_the_death_of_the_engine_ends_the_process(model: Path) -> None:
    with serving(model) as server, httpx.Client(base_url=server.base_url, timeout=60) as client:
        with open_stream(server.port, "a", ENDLESS) as stream:
            read_until(stream, b"data: ")
            server.call(server.runtime.serving().engine.stop())
            assert b"engine_dead" in read_until(stream, b"engine_dead")
        assert_refused(client.get("/health"), 503, "engine_dead")
        assert server.join() == 1

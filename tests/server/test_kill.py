"""`kill -9` at random moments during turns and documents: every acknowledged version is there, and none is torn."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import httpx
import pytest

from tests.engine.sessions_harness import text_of
from tests.redis_server import RedisServer, redis_is_installed
from tests.server.forked import ForkedServer, Forker
from tests.server.harness import ask, session_of

NUM_OPERATIONS = 50
OPERATIONS_PER_KILL = 4
DOCUMENT = text_of(4)


@pytest.fixture(params=["local", pytest.param("redis", marks=pytest.mark.redis)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield f"local://{tmp_path / 'sessions'}"
        return
    if not redis_is_installed():
        pytest.skip("redis-server is not installed")
    with RedisServer(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as redis:
        yield redis.url


@pytest.fixture
def killable(forker: Forker, model: Path, store: str, tmp_path: Path) -> Iterator[ForkedServer]:
    settings = {"model": str(model), "store": store, "lease_seconds": "0.5", "ingest_commit_tokens": "60"}
    with ForkedServer(forker, tmp_path, **settings) as server:
        yield server


def operate(client: httpx.Client, session_id: str, number: int) -> int:
    """Every third one is a document. The version after it, as the server acknowledges it."""
    if number % 3 == 2:
        response = read_document(client, session_id, f"document-{number}")
    else:
        key = {"Idempotency-Key": f"turn-{number}"}
        response = ask(client, f"turn {number}", key, session_id=session_id, max_tokens=3, ignore_eos=True)
    response.raise_for_status()
    version: int = response.json()["session"]["version"]
    return version


def read_document(client: httpx.Client, session_id: str, document_id: str) -> httpx.Response:
    """Goes on where the last commit ended, as a client does."""
    told = client.get(f"/v1/sessions/{session_id}").raise_for_status().json()
    params = dict(told["open_ingest"] or {"document_id": document_id, "offset": 0})
    assert params["document_id"] == document_id
    raw = DOCUMENT[params["offset"] :]
    headers = {"Content-Type": "text/plain"}
    return client.post(f"/v1/sessions/{session_id}/ingest", content=raw, params=params, headers=headers)


def operate_until_acknowledged(client: httpx.Client, session_id: str, number: int) -> tuple[int, int]:
    """The version, and how often something was in the way."""
    num_failures = 0
    while True:
        try:
            return operate(client, session_id, number), num_failures
        except httpx.TransportError:
            pass
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in (httpx.codes.CONFLICT, httpx.codes.SERVICE_UNAVAILABLE):
                raise
        num_failures += 1
        time.sleep(0.02)


@contextmanager
def killed_meanwhile(server: ForkedServer, delay_seconds: float) -> Iterator[None]:
    """The process dies so long after the beginning of the block, and another takes its place."""

    def kill() -> None:
        time.sleep(delay_seconds)
        server.kill9()
        server.start()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_kill_9_loses_nothing_acknowledged_tears_nothing_and_teaches_nothing_twice(killable: ForkedServer) -> None:
    """The killed session ends with the very tokens of one that was left in peace."""
    started = time.monotonic()
    for number in range(NUM_OPERATIONS):
        operate(killable.client, "in-peace", number)
    mean_seconds = (time.monotonic() - started) / NUM_OPERATIONS
    dice = random.Random(0)
    num_failures, acknowledged = 0, 0
    for number in range(NUM_OPERATIONS):
        is_killed = number % OPERATIONS_PER_KILL == 0
        with killed_meanwhile(killable, dice.uniform(0, mean_seconds)) if is_killed else nullcontext():
            version, failures = operate_until_acknowledged(killable.client, "killed", number)
        assert version > acknowledged
        num_failures, acknowledged = num_failures + failures, version
        assert session_of(killable.client, "killed")["version"] == acknowledged
    assert num_failures > 0, "nothing was ever in the way"
    left, right = session_of(killable.client, "killed"), session_of(killable.client, "in-peace")
    assert left["version"] == acknowledged
    for name in ("tokens_digest", "position", "open_ingest"):
        assert left[name] == right[name], name


@pytest.mark.parametrize("failpoint", ["commit.part", "commit.before_flip", "commit.after_flip"])
def test_a_process_that_dies_inside_a_commit_leaves_the_old_version_or_the_new(
    killable: ForkedServer, failpoint: str
) -> None:
    operate(killable.client, "s", 0)
    before = session_of(killable.client, "s")
    killable.kill9()
    killable.launch(failpoints=f"{failpoint}=1:kill")
    killable.wait_ready()
    with pytest.raises(httpx.TransportError):
        operate(killable.client, "s", 1)
    killable.wait_end()
    killable.start()
    after = session_of(killable.client, "s")
    assert after["version"] == (2 if failpoint == "commit.after_flip" else 1)
    if after["version"] == 1:
        assert after == before
    assert operate(killable.client, "s", 1) == 2
    assert session_of(killable.client, "s")["version"] == 2

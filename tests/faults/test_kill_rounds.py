"""`kill -9` of the server and of Redis, over every failpoint and at random moments, while turns and documents are in
flight: every acknowledged version is there, none is torn, and what was learned is what was to be learned."""

import itertools
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from tests.engine.sessions_harness import text_of
from tests.faults.figures import tell
from tests.faults.writers import (
    COMMIT_NUM_TOKENS,
    Writer,
    assert_nothing_was_lost_or_torn,
    new_writers,
    operate,
    writing,
)
from tests.redis_server import RedisServer
from tests.server.forked import ForkedServer, Forker
from tests.server.harness import session_of

ROOT = Path(__file__).resolve().parent.parent.parent
# Passes through a failpoint before it kills: a commit takes about a dozen commands, and the start some of its own.
MAX_PASSES = {"redis.request": 40, "redis.reply": 40}
MAX_PASSES_OTHERWISE = 3


@pytest.fixture(params=["local", pytest.param("redis", marks=pytest.mark.redis)])
def killable_store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return f"local://{tmp_path / 'sessions'}"
    redis: RedisServer = request.getfixturevalue("own_redis")
    return redis.url


@pytest.fixture
def killable(forker: Forker, model: Path, tmp_path: Path) -> Iterator[Callable[[str], ForkedServer]]:
    """A server on a store, not started."""
    servers: list[ForkedServer] = []

    def on(store: str) -> ForkedServer:
        commit_tokens = str(COMMIT_NUM_TOKENS)
        settings = {"model": str(model), "store": store, "lease_seconds": "0.2", "ingest_commit_tokens": commit_tokens}
        servers.append(ForkedServer(forker, tmp_path, **settings))
        return servers[-1]

    yield on
    for server in servers:
        server.kill9()
        server.client.close()


def failpoints_of(store: str) -> list[str]:
    """The names that the code of a store passes through."""
    patterns = ("local*.py", "blobs.py") if store.startswith("local") else ("redis*.py",)
    files = [path for pattern in patterns for path in (ROOT / "engine" / "stores").glob(pattern)]
    texts = [path.read_text(encoding="utf-8") for path in files]
    return sorted({name for text in texts for name in re.findall(r'failpoint\("([a-z_.]+)"\)', text)})


def kills(store: str, dice: random.Random) -> Iterator[str]:
    """What to arm for each life of the server; every other one is empty, for a kill at a random moment."""
    for name in itertools.cycle(failpoints_of(store)):
        yield f"{name}={dice.randint(1, MAX_PASSES.get(name, MAX_PASSES_OTHERWISE))}:kill"
        yield ""


def kill_server(server: ForkedServer, num_rounds: int, store: str) -> None:
    dice = random.Random(0)
    writers = new_writers(server)
    started = time.monotonic()
    with writing(writers):
        for failpoints in itertools.islice(kills(store, dice), num_rounds):
            server.launch(failpoints=failpoints)
            if failpoints:
                server.wait_end()
            else:
                server.wait_ready()
                time.sleep(dice.uniform(0, 0.1))
                server.kill9()
        server.start()
    seconds = time.monotonic() - started
    assert "exit" not in server.log, "a server ended by itself"
    assert all(writer.num_failures > 0 for writer in writers), "nothing was ever in the way"
    assert_nothing_was_lost_or_torn(server, writers)
    tell_of("kills of the server", num_rounds, writers, seconds)


def kill_redis(server: ForkedServer, redis: RedisServer, num_rounds: int) -> None:
    dice = random.Random(0)
    server.start()
    writers = new_writers(server)
    started = time.monotonic()
    with writing(writers):
        for _ in range(num_rounds):
            time.sleep(dice.uniform(0, 0.3))
            redis.kill()
            redis.start()
    seconds = time.monotonic() - started
    assert_nothing_was_lost_or_torn(server, writers)
    tell_of("kills of Redis", num_rounds, writers, seconds)


def tell_of(what: str, num_rounds: int, writers: Sequence[Writer], seconds: float) -> None:
    tell(
        f"{num_rounds} {what} in {seconds:.0f} s: {sum(writer.num_done for writer in writers)} operations and "
        f"{sum(writer.acknowledged for writer in writers)} commits acknowledged, "
        f"{sum(writer.num_failures for writer in writers)} attempts failed, 0 lost, 0 torn"
    )


def test_every_failpoint_of_a_store_is_found() -> None:
    assert len(failpoints_of("local://")) >= 10
    assert {"commit.before_flip", "redis.request", "redis.reply"} <= set(failpoints_of("redis://"))


def test_100_kills_of_the_server_lose_nothing_tear_nothing_and_teach_nothing_twice(
    killable: Callable[[str], ForkedServer], killable_store: str
) -> None:
    """On each of the two durable stores."""
    kill_server(killable(killable_store), 100, killable_store)


@pytest.mark.redis
def test_50_kills_of_a_redis_that_syncs_always_lose_nothing_and_tear_nothing(
    killable: Callable[[str], ForkedServer], own_redis: RedisServer
) -> None:
    kill_redis(killable(own_redis.url), own_redis, 50)


@pytest.mark.parametrize("failpoint", ["commit.part", "commit.before_flip", "commit.after_flip"])
def test_a_process_that_dies_inside_a_commit_leaves_the_old_version_or_the_new(
    killable: Callable[[str], ForkedServer], killable_store: str, failpoint: str
) -> None:
    server = killable(killable_store).start()
    operate(server.client, "s", 0)
    before = session_of(server.client, "s")
    server.kill9()
    server.launch(failpoints=f"{failpoint}=1:kill")
    server.wait_ready()
    with pytest.raises(httpx.TransportError):
        operate(server.client, "s", 1)
    server.wait_end()
    server.start()
    after = session_of(server.client, "s")
    assert after["version"] == (2 if failpoint == "commit.after_flip" else 1)
    if after["version"] == 1:
        assert after == before
    assert operate(server.client, "s", 1) == 2
    assert session_of(server.client, "s")["version"] == 2


def test_a_document_whose_server_dies_at_each_of_its_commits_is_read_as_if_it_had_not(
    killable: Callable[[str], ForkedServer], killable_store: str
) -> None:
    document = text_of(20)
    path, headers = "/v1/sessions/killed/ingest", {"Content-Type": "text/plain"}
    server = killable(killable_store)
    offsets = [0]
    while True:
        # A life's second commit does not come to its end, and its first one is kept.
        server.launch(failpoints="commit.before_flip=2:kill")
        server.wait_ready()
        params: dict[str, str | int] = {"document_id": "book", "offset": offsets[-1]}
        try:
            response = server.client.post(path, content=document[offsets[-1] :], params=params, headers=headers)
        except httpx.TransportError:
            server.wait_end()
            server.start()
            offsets.append(session_of(server.client, "killed")["open_ingest"]["offset"])
            server.kill9()
        else:
            assert response.status_code == 200, response.text
            break
    server.kill9()
    server.start()
    assert offsets == sorted(set(offsets))
    assert len(offsets) > 5
    server.client.post("/v1/sessions/in-peace/ingest", content=document, headers=headers).raise_for_status()
    killed, in_peace = session_of(server.client, "killed"), session_of(server.client, "in-peace")
    for name in ("tokens_digest", "position", "version", "open_ingest"):
        assert killed[name] == in_peace[name], name

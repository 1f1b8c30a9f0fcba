"""A store that comes back older than it was: the client that knows better is told, and nobody mixes two states."""

import shutil
from pathlib import Path

import httpx
import pytest

from tests.redis_server import RedisServer
from tests.server.harness import ask, assert_refused, serving, session_of, until


@pytest.mark.redis
def test_a_redis_that_comes_back_with_an_older_head_is_noticed_by_the_version_that_the_client_knows(
    model: Path, tmp_path: Path, own_redis: RedisServer
) -> None:
    disk, backup = tmp_path / "redis" / "appendonlydir", tmp_path / "backup"
    with (
        serving(model, store=own_redis.url) as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        ask(client, "one", session_id="s")
        older = session_of(client, "s")
        own_redis.stop()
        shutil.copytree(disk, backup)
        own_redis.start()
        until(lambda: client.get("/ready").status_code == 200)
        assert ask(client, "two", session_id="s").json()["session"]["version"] == 2
        newer = session_of(client, "s")

        own_redis.stop()
        shutil.rmtree(disk)
        shutil.copytree(backup, disk)
        own_redis.start()
        until(lambda: client.get("/ready").status_code == 200)
        assert session_of(client, "s") == older
        refused = ask(client, "three", {"If-Match": '"2"'}, session_id="s")
        assert_refused(refused, 412, "version_conflict")
        assert session_of(client, "s") == older
        # The copy of version 2 that the server still has in memory is of a generation that is not committed.
        assert ask(client, "two", session_id="s").json()["session"]["version"] == 2
        assert session_of(client, "s")["tokens_digest"] == newer["tokens_digest"]

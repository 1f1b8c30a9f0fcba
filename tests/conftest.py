"""Shared by all rooms: one thread per test process, and a Redis that is started once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.redis_server import RedisServer, redis_is_installed

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Tests share it: each takes a `?prefix=` of its own, and none stops it."""
    if not redis_is_installed():
        pytest.skip("redis-server is not installed")
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """For one test, which may stop or kill it. It acknowledges nothing before it is on the disk."""
    if not redis_is_installed():
        pytest.skip("redis-server is not installed")
    with RedisServer(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server

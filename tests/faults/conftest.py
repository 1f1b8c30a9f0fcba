"""The fixtures that faults are tried with: those of the servers' tests, and stores of the test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.conftest import store, store_url
from tests.redis_server import RedisServer, redis_is_installed
from tests.server.conftest import forker, model

__all__ = ["always_redis", "forker", "model", "store", "store_url"]


@pytest.fixture
def always_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that acknowledges nothing before it is on the disk, and that the test may kill."""
    if not redis_is_installed():
        pytest.skip("redis-server is not installed")
    with RedisServer(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as running:
        yield running

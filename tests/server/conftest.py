"""One server for all tests that do not need one of their own; sessions have names of their own."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.forked import Forker
from tests.server.harness import ThreadedServer, new_name, serving, tiny_folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's checkpoint folder."""
    return tiny_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedServer]:
    """A local store; documents are committed every hundred tokens."""
    store = f"local://{tmp_path_factory.mktemp('server') / 'sessions'}"
    with serving(model, store=store, ingest_commit_tokens="100", lease_seconds="1", max_body_bytes="200000") as running:
        yield running


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    """Starts servers that are other processes, quickly."""
    with Forker() as running:
        yield running


@pytest.fixture
def client(server: ThreadedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.base_url, timeout=60) as connected:
        yield connected


@pytest.fixture
def session_id() -> str:
    return new_name()

"""One server for all tests of the clients. Who kills it starts it again; sessions have names of their own."""

from collections.abc import Iterator

import pytest

from clients import Client
from tests.server_process import ServerProcess, tiny_server

# Documents of a few hundred tokens are committed, and their memory sampled, several times on their way.
SMALL_COMMITS = {
    "ingest_commit_tokens": "100",
    "memory_sample_tokens": "100",
    "token_log": "1",
    "lease_seconds": "1",
}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with tiny_server(tmp_path_factory.mktemp("clients"), **SMALL_COMMITS) as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.base_url) as connected:
        yield connected

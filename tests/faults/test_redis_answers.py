"""What a Redis may say instead of an answer: each is told in our words, and no secret of the URL with it."""

import socketserver
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine.errors import AtlasError, StoreFull, StoreUnavailable
from engine.stores import open_store
from tests.engine.store_cases import KEY, commit_number


@contextmanager
def redis_that_says(line: bytes) -> Iterator[int]:
    """The port of a server that answers every command with the same line."""

    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while words := self.rfile.readline():
                for _ in range(int(words[1:])):
                    self.rfile.read(int(self.rfile.readline()[1:]) + 2)
                self.wfile.write(line + b"\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("line", "error", "reason"),
    [
        (b"-LOADING Redis is loading the dataset in memory", StoreUnavailable, "loading"),
        (b"-READONLY You can't write against a read only replica.", StoreUnavailable, "read-only"),
        (b"-NOREPLICAS Not enough good replicas to write.", StoreUnavailable, "refused"),
        (b"-NOAUTH Authentication required.", StoreUnavailable, "credentials"),
        (b"-NOPERM this user has no permissions", StoreUnavailable, "permit"),
        (b"-MOVED 3999 127.0.0.1:6381", StoreUnavailable, "Redis"),
        (b"-MISCONF Redis is configured to save RDB snapshots", StoreUnavailable, "refused"),
        (b"-OOM command not allowed when used memory > 'maxmemory'.", StoreFull, "maxmemory"),
        (b"nonsense", StoreUnavailable, "Redis"),
    ],
)
def test_an_answer_that_is_none_is_told_in_our_words_and_without_the_password(
    line: bytes, error: type[AtlasError], reason: str
) -> None:
    with redis_that_says(line) as port:
        store = open_store(f"redis://:s3cret@127.0.0.1:{port}/0")
        for call in (
            lambda: store.read_head(KEY),
            lambda: commit_number(store, 1, base=None),
            lambda: store.acquire_lease(KEY, "me", 1.0),
        ):
            with pytest.raises(error, match=reason) as caught:
                call()
            assert "s3cret" not in "".join(traceback.format_exception(caught.value))
        store.close()

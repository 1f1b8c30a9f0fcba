"""Clients that go on writing whatever happens to the server, and know what they were promised."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import httpx

from tests.engine.sessions_harness import text_of
from tests.server.forked import ForkedServer
from tests.server.harness import ask, session_of

DOCUMENT = text_of(4)
# Of the tiny model's: the document is committed several times.
COMMIT_NUM_TOKENS = 60
NUM_WRITERS = 2
PAUSE_SECONDS = 0.02


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


@dataclass
class Writer:
    """One session's only client: an operation is tried until it is acknowledged, then comes the next."""

    base_url: str
    session_id: str
    num_done: int = 0
    num_failures: int = 0
    acknowledged: int = 0
    broken: list[str] = field(default_factory=list)
    _is_checked: bool = True

    def work(self, is_over: threading.Event) -> None:
        with httpx.Client(base_url=self.base_url, timeout=30) as client:
            while not is_over.is_set() and not self.broken:
                try:
                    self._step(client)
                except Exception as error:
                    # Boundary of the thread: whoever waits for it looks here.
                    self.broken.append(repr(error))

    def _step(self, client: httpx.Client) -> None:
        try:
            if self._is_checked:
                self._acknowledge(operate(client, self.session_id, self.num_done))
            else:
                told = client.get(f"/v1/sessions/{self.session_id}").raise_for_status().json()["version"]
                self._check(told)
        except httpx.TransportError:
            self._failed()
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in (httpx.codes.CONFLICT, httpx.codes.SERVICE_UNAVAILABLE):
                raise
            self._failed()

    def _acknowledge(self, version: int) -> None:
        if version <= self.acknowledged:
            self.broken.append(f"version {version} was acknowledged after {self.acknowledged}")
        self.acknowledged = version
        self.num_done += 1
        self._is_checked = False

    def _check(self, told: int) -> None:
        """Nobody else writes and nothing of ours is in flight: the session is where we were told it is."""
        if told != self.acknowledged:
            self.broken.append(f"version {self.acknowledged} was acknowledged and the session is at {told}")
        self._is_checked = True

    def _failed(self) -> None:
        self.num_failures += 1
        time.sleep(PAUSE_SECONDS)


class Worker(Protocol):
    def work(self, is_over: threading.Event) -> None:
        """Until `is_over`, and what was begun by then."""


@contextmanager
def writing(writers: Sequence[Worker]) -> Iterator[None]:
    """They write while the block runs, and finish what they have begun."""
    is_over = threading.Event()
    threads = [threading.Thread(target=writer.work, args=(is_over,)) for writer in writers]
    with ExitStack() as ends:
        for thread in threads:
            thread.start()
            ends.callback(thread.join)
        ends.callback(is_over.set)
        yield


def new_writers(server: ForkedServer) -> list[Writer]:
    return [Writer(f"http://127.0.0.1:{server.port}", f"killed-{number}") for number in range(NUM_WRITERS)]


def assert_nothing_was_lost_or_torn(server: ForkedServer, writers: Sequence[Writer]) -> None:
    """What was killed has the very tokens of a session that did as much in peace."""
    number = 0
    for writer in sorted(writers, key=lambda writer: writer.num_done):
        assert not writer.broken, writer.broken
        while number < writer.num_done:
            operate(server.client, "in-peace", number)
            number += 1
        left, right = session_of(server.client, writer.session_id), session_of(server.client, "in-peace")
        assert left["version"] == writer.acknowledged, (left["version"], writer)
        for name in ("tokens_digest", "position", "open_ingest"):
            assert left[name] == right[name], name

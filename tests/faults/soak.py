"""Clients that do everything that clients do, for as long as they are let, and keep an account of what they were told.

Each has one session at a time. At the end of the session's life it must be what the account says: its version, and the
tokens_digest of a session that is told the same in peace, without anybody hanging up.
"""

import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.faults.writers import DOCUMENT, PAUSE_SECONDS, read_document
from tests.server.harness import ask, session_of, user

NUM_OPERATIONS_PER_LIFE = 10
# What a client does, and how often.
KINDS = {"turn": 4, "stream": 3, "hang up": 2, "document": 2, "broken document": 1, "question": 4, "fork": 1}
LEARNING = ("turn", "stream", "document", "broken document")
ENDLESS = {"max_tokens": 30_000, "ignore_eos": True, "stream": True}


@dataclass
class Client:
    """`counts`: what it did. `broken`: what was not as it had been promised; it stops at the first."""

    base_url: str
    name: str
    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def work(self, is_over: threading.Event) -> None:
        dice = random.Random(self.name)
        with httpx.Client(base_url=self.base_url, timeout=60) as client:
            for life in itertools.count():
                if is_over.is_set() or self.broken:
                    return
                kinds = dice.choices(list(KINDS), list(KINDS.values()), k=NUM_OPERATIONS_PER_LIFE)
                try:
                    self._live_once(client, f"{self.name}-{life}", ["turn", *kinds])
                except Exception as error:
                    # Boundary of the thread: whoever waits for it looks here.
                    self.broken.append(repr(error))

    def _live_once(self, client: httpx.Client, session: str, kinds: Sequence[str]) -> None:
        version = 0
        for number, kind in enumerate(kinds):
            version = _operate(client, session, kind, number, version)
            self.counts[kind] += 1
            told = session_of(client, session)
            if told["version"] != version:
                self.broken.append(f"{session} is at version {told['version']} and was told {version} after {kind}")
        digest = session_of(client, session)["tokens_digest"]
        for number, kind in enumerate(kinds):
            if kind in LEARNING:
                _operate(client, f"{session}-peace", kind.removeprefix("broken "), number, 0)
        if session_of(client, f"{session}-peace")["tokens_digest"] != digest:
            self.broken.append(f"{session} has learned something else than {kinds}")
        for each in (session, f"{session}-peace"):
            client.delete(f"/v1/sessions/{each}").raise_for_status()
            assert client.get(f"/v1/sessions/{each}").status_code == httpx.codes.NOT_FOUND
        self.counts["session"] += 1


def _operate(client: httpx.Client, session: str, kind: str, number: int, version: int) -> int:
    """The version that the session must be at then."""
    fields: dict[str, Any] = {"session_id": session, "max_tokens": 4, "ignore_eos": True, "temperature": 0}
    fields["messages"] = [user(f"turn {number}")]
    if kind == "turn":
        told = client.post("/v1/chat/completions", json=fields).raise_for_status().json()
        return int(told["session"]["version"])
    if kind == "stream":
        with client.stream("POST", "/v1/chat/completions", json={**fields, "stream": True}) as response:
            chunks = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
        return next(int(chunk["session"]["version"]) for chunk in chunks if "session" in chunk)
    if kind == "hang up":
        with client.stream("POST", "/v1/chat/completions", json={**fields, **ENDLESS}) as response:
            next(response.iter_lines())
    elif kind == "question":
        ask(client, f"question {number}", session_id=session, read_only=True).raise_for_status()
    elif kind == "fork":
        copy = f"{session}-fork-{number}"
        client.post(f"/v1/sessions/{session}/fork", json={"new_id": copy}).raise_for_status()
        assert session_of(client, copy)["tokens_digest"] == session_of(client, session)["tokens_digest"]
        ask(client, "another turn", session_id=copy).raise_for_status()
        client.delete(f"/v1/sessions/{copy}").raise_for_status()
    else:
        document_id = f"document-{number}"
        if kind == "broken document":
            _break_off(client, session, document_id)
        while (response := read_document(client, session, document_id)).status_code == httpx.codes.CONFLICT:
            # The server may still be at what came before the break.
            time.sleep(PAUSE_SECONDS)
        return int(response.raise_for_status().json()["session"]["version"])
    return version


def _break_off(client: httpx.Client, session: str, document_id: str) -> None:
    """Two thirds of a document, and then nothing more."""

    def pieces() -> Iterator[bytes]:
        yield DOCUMENT[: len(DOCUMENT) * 2 // 3]
        raise _GaveUp

    with suppress(_GaveUp):
        client.post(f"/v1/sessions/{session}/ingest", content=pieces(), params={"document_id": document_id})


class _GaveUp(Exception):  # noqa: N818  (nothing went wrong)
    pass

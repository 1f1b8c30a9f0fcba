"""The answers of a session's last turns and documents, kept with the generation so that a repeat is answered and not
learned again (SESSIONS.md, 1.2).

A repeat is known by its Idempotency-Key, or, when the client's library says that it is retrying, by a request digest
that equals the last commit's; a document by its key or its id. The bytes are opaque to the store; here they are JSON.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from engine.errors import IdempotencyMismatch, StateCorrupt
from engine.snapshots.tokens_digest import INITIAL_DIGEST

MAX_TURNS = 8
# Of their answers together, but the last is always kept: one with log-probabilities may have megabytes.
MAX_NUM_BYTES = 2**20
MAX_DOCUMENTS = 64


@dataclass(frozen=True, slots=True)
class RequestIdentity:
    """How a repeat of a request is recognised.

    digest: of everything that makes the request what it is.   is_retry: the client's library says that it retries.
    """

    digest: str = ""
    idempotency_key: str | None = None
    is_retry: bool = False


@dataclass(frozen=True, slots=True)
class StoredTurn:
    """A committed turn, or another change of the session that must not be made twice: its beginning, a rewind.

    `response` is the whole answer, `note` what the client wants recorded.
    """

    version: int
    key: str | None
    request_digest: str
    response: Mapping[str, Any]
    note: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document that was read to its end: `content_digest` is over its bytes, `response` the answer as it was sent."""

    document_id: str
    key: str | None
    num_bytes: int
    content_digest: str
    response: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredTurns:
    """`tokens_digest` (hex) is the session's, here so that it can be told without loading the state."""

    turns: tuple[StoredTurn, ...] = ()
    documents: tuple[StoredDocument, ...] = ()
    tokens_digest: str = INITIAL_DIGEST.hex()

    def with_turn(self, turn: StoredTurn) -> Self:
        """The oldest make room for it."""
        kept = [turn]
        num_bytes = _num_bytes(turn)
        for earlier in reversed(self.turns[1 - MAX_TURNS :]):
            num_bytes += _num_bytes(earlier)
            if num_bytes > MAX_NUM_BYTES:
                break
            kept.insert(0, earlier)
        return replace(self, turns=tuple(kept))

    def with_document(self, document: StoredDocument) -> Self:
        return replace(self, documents=(*self.documents, document)[-MAX_DOCUMENTS:])

    def find_turn(self, version: int, identity: RequestIdentity) -> StoredTurn | None:
        """The turn that this request repeats, `version` being the session's now.

        Raises IdempotencyMismatch when its key came with another request.
        """
        for turn in reversed(self.turns):
            if identity.idempotency_key is not None and turn.key == identity.idempotency_key:
                if turn.request_digest != identity.digest:
                    raise IdempotencyMismatch("this Idempotency-Key was used for another request")
                return turn
        last = self.turns[-1] if self.turns else None
        if identity.is_retry and last and (last.version, last.request_digest) == (version, identity.digest):
            return last
        return None

    def find_document(self, document_id: str | None, key: str | None) -> StoredDocument | None:
        """The finished document with this key or this id."""
        for document in reversed(self.documents):
            if (key is not None and document.key == key) or document.document_id == document_id:
                return document
        return None

    def forked(self, session_id: str) -> Self:
        """What a new session takes along from the one that it begins from: what was read, and no turn's answer."""
        documents = []
        for document in self.documents:
            session = {**document.response["session"], "session_id": session_id, "version": 0}
            documents.append(replace(document, response={**document.response, "session": session}))
        return replace(self, turns=(), documents=tuple(documents))

    def told_to(self, session_id: str) -> Self:
        """These, with documents that another session has read and this one was forked from as a fork has them."""
        is_own = all(document.response["session"]["session_id"] == session_id for document in self.documents)
        return self if is_own else self.forked(session_id)

    def encode(self) -> bytes:
        turns = [[t.version, t.key, t.request_digest, t.response, t.note] for t in self.turns]
        documents = [[d.document_id, d.key, d.num_bytes, d.content_digest, d.response] for d in self.documents]
        value = {"turns": turns, "documents": documents, "tokens_digest": self.tokens_digest}
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """The inverse of `encode`; no bytes are no answers. Raises StateCorrupt."""
        if not raw:
            return cls()
        try:
            value = json.loads(raw)
            turns = tuple(StoredTurn(*fields) for fields in value["turns"])
            documents = tuple(StoredDocument(*fields) for fields in value["documents"])
            tokens_digest = str(value["tokens_digest"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StateCorrupt("the stored answers of the session cannot be read") from error
        return cls(turns, documents, tokens_digest)


def _num_bytes(turn: StoredTurn) -> int:
    return len(json.dumps(turn.response, separators=(",", ":")))


def stored_change(version: int, identity: RequestIdentity, response: Mapping[str, Any]) -> StoredTurn:
    """A change of the session that is no turn."""
    return StoredTurn(version, identity.idempotency_key, identity.digest, response, {})

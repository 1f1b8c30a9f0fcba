# ruff: noqa: N818  (the names are the codes of the wire, and those carry no suffix)
"""Every failure that a caller can cause or has to hear about, as one tree.

Each class carries the `code` that the wire uses for it; the status that goes with a code is the server's affair (one
table there). A message may be shown to a client: it never holds a password, a text of a session or a path.
`assert` is for our own invariants, never for anything in this file.
"""

from typing import ClassVar


class AtlasError(Exception):
    """The root. `message` is safe to show; `code` is the machine-readable name."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(AtlasError):
    """The request itself is wrong. `param` names the field, when one is to blame."""

    code = "invalid_request"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnsupportedParameter(InvalidRequest):
    """A parameter that we know and do not serve."""

    code = "unsupported_parameter"


class InvalidUnicode(InvalidRequest):
    """Bytes that are not UTF-8, or a lone surrogate."""

    code = "invalid_unicode"


class EmptyPrompt(InvalidRequest):
    """Nothing to feed."""

    code = "empty_prompt"


class SessionError(AtlasError):
    """The session is not in a state that allows what was asked."""


class SessionNotFound(SessionError):
    code = "session_not_found"


class SessionExists(SessionError):
    code = "session_exists"


class SessionBusy(SessionError):
    """Another writer holds the session, or won the flip: this turn was not applied and may be retried."""

    code = "session_busy"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CommitConflict(SessionBusy):
    """Another writer committed first. Nothing of this turn was applied."""


class SessionDiverged(SessionError):
    """The messages do not continue the session's ledger."""

    code = "session_diverged"


class IngestOpen(SessionError):
    code = "ingest_open"


class IngestOffset(SessionError):
    """A resumed ingest does not begin where the last commit ended. `expected` is the byte offset that would fit."""

    code = "ingest_offset"

    def __init__(self, message: str, expected: int) -> None:
        super().__init__(message)
        self.expected = expected


class IdempotencyMismatch(SessionError):
    """A known Idempotency-Key came back with another request."""

    code = "idempotency_mismatch"


class VersionConflict(SessionError):
    """The client's `If-Match` is not the committed version. `current` is, when it is known."""

    code = "version_conflict"

    def __init__(self, message: str, current: int | None = None) -> None:
        super().__init__(message)
        self.current = current


class TurnStays(SessionError):
    """A turn that cannot be taken back. The message says why."""

    code = "turn_stays"


class VersionNotFound(SessionError):
    code = "version_not_found"


class SnapshotError(AtlasError):
    """A snapshot that must not be used."""


class StateLost(SnapshotError):
    """The head names parts that are gone. `last_whole_version` is the newest that could still be read, if any."""

    code = "state_lost"

    def __init__(self, message: str, last_whole_version: int | None = None) -> None:
        super().__init__(_with_way_back(message, last_whole_version))
        self.last_whole_version = last_whole_version


class LogLost(StateLost):
    """The token log of a session is gone, or shorter than its head says."""


class StateCorrupt(SnapshotError):
    """Bytes were flipped, cut or added. `last_whole_version` is the newest that could still be read, if any."""

    code = "state_corrupt"

    def __init__(self, message: str, last_whole_version: int | None = None) -> None:
        super().__init__(_with_way_back(message, last_whole_version))
        self.last_whole_version = last_whole_version


class InvalidState(SnapshotError):
    """Well-formed by its checksums, and still not a state of this model: a hostile or broken header."""

    code = "invalid_state"


class StateTooNew(SnapshotError):
    """Written by a newer schema than this code reads."""

    code = "state_too_new"


class StateModelMismatch(SnapshotError):
    """Another model's snapshot."""

    code = "state_model_mismatch"

    def __init__(self, snapshot_fingerprint: str, model_fingerprint: str) -> None:
        super().__init__(
            f"the snapshot was made by model {snapshot_fingerprint}, this server runs model {model_fingerprint}"
        )
        self.snapshot_fingerprint = snapshot_fingerprint
        self.model_fingerprint = model_fingerprint


class TokenizerMismatch(StateModelMismatch):
    """A token log whose ids mean other texts to this server's model."""

    def __init__(self, log_tokenizer: str, model_tokenizer: str) -> None:
        AtlasError.__init__(
            self,
            f"the token log was written with tokenizer {log_tokenizer}, this server's model has tokenizer"
            f" {model_tokenizer}",
        )
        self.snapshot_fingerprint, self.model_fingerprint = log_tokenizer, model_tokenizer


class MemoryDiverged(AtlasError):
    """A memory or momentum is not finite, or beyond its bound. `layer` names it."""

    code = "memory_diverged"

    def __init__(self, message: str, layer: str) -> None:
        super().__init__(message)
        self.layer = layer


class ModelNotFound(AtlasError):
    code = "model_not_found"


class Unavailable(AtlasError):
    """Nothing was applied; the same request may work later."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(Unavailable):
    code = "queue_full"


class EngineOverloaded(Unavailable):
    """The device had no memory for this sequence, even alone."""

    code = "engine_overloaded"


class Loading(Unavailable):
    code = "loading"


class Draining(Unavailable):
    code = "draining"


class EngineDead(Unavailable):
    code = "engine_dead"


class StoreUnavailable(Unavailable):
    """The store did not answer, refused, or has what was written in too few places.

    The session is as it was, or as the same request finds it when it is repeated.
    """

    code = "store_unavailable"


class StoreFull(AtlasError):
    """The store has no room. The session is as it was."""

    code = "store_full"


class StoreMisconfigured(AtlasError):
    """Found at start: a store that would tear sessions, or that another server holds."""

    code = "store_misconfigured"


def _with_way_back(message: str, last_whole_version: int | None) -> str:
    return message if last_whole_version is None else f"{message}; version {last_whole_version} is whole: rewind to it"

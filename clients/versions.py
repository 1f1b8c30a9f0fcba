"""Versions of a session on the wire: beginning a session from one, going back to one, naming one, and one as a file.

A version is said by its number or by its name; None is the committed one. Nothing here opens a connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypedDict

from clients.errors import ConnectionFailedError, ProtocolError
from clients.messages import SessionCommit, SessionInfo, as_object, required
from clients.protocol import Call, Request, session_path

OCTETS = "application/octet-stream"
# Of a snapshot on its way: what is in memory at once.
PIECE_NUM_BYTES = 2**18


@dataclass(frozen=True, slots=True)
class SessionVersion:
    """A version that is kept. `position` counts tokens; `created` is seconds since the epoch, None where it is not
    known."""

    version: int
    name: str | None
    position: int
    num_bytes: int
    created: float | None
    is_committed: bool

    @classmethod
    def parse(cls, value: object) -> Self:
        body = as_object(value, "version")
        return cls(
            version=required(body, "version", int, "version"),
            name=None if body.get("name") is None else required(body, "name", str, "version"),
            position=required(body, "position", int, "version"),
            num_bytes=required(body, "bytes", int, "version"),
            created=None if body.get("created") is None else required(body, "created", float, "version"),
            is_committed=required(body, "committed", bool, "version"),
        )


@dataclass(frozen=True, slots=True)
class ExportedSession:
    """A file that holds a whole snapshot. `digest` is the snapshot's own, in hex."""

    session_id: str
    version: int
    num_bytes: int
    digest: str


class Download:
    """An export on its way: `add` each piece, and `finish`."""

    def __init__(self, session_id: str, headers: Mapping[str, str]) -> None:
        """headers: of the answer. Raises ProtocolError."""
        try:
            version, self._num_expected_bytes = (int(headers[name]) for name in ("x-session-version", "content-length"))
            digest = headers["etag"].strip('"')
        except (KeyError, ValueError) as error:
            raise ProtocolError("the answer is not an export") from error
        self._exported = ExportedSession(session_id, version, self._num_expected_bytes, digest)
        self._num_bytes = 0

    def add(self, piece: bytes) -> bytes:
        """The piece itself, counted."""
        self._num_bytes += len(piece)
        return piece

    def finish(self) -> ExportedSession:
        """Raises ConnectionFailedError when the answer was cut."""
        if self._num_bytes != self._num_expected_bytes:
            raise ConnectionFailedError(f"the export was cut at byte {self._num_bytes} of {self._num_expected_bytes}")
        return self._exported


class CreateOptions(TypedDict, total=False):
    """from_session, from_version: what the new session begins from; without them it has read nothing."""

    ttl_seconds: int
    from_session: str
    from_version: int | str
    idempotency_key: str


class ForkOptions(TypedDict, total=False):
    """Metadata and time to live are the other session's unless they are given."""

    version: int | str | None
    metadata: Mapping[str, str]
    ttl_seconds: int
    idempotency_key: str


class RewindOptions(TypedDict, total=False):
    """if_match: the version that the caller believes to be committed."""

    if_match: int
    idempotency_key: str


def create_session(
    session_id: str | None, metadata: Mapping[str, str] | None, options: CreateOptions
) -> Call[SessionInfo]:
    headers, body = _conditions(options)
    source = _told(session_id=body.pop("from_session", None), version=body.pop("from_version", None))
    body |= _told(id=session_id, metadata=None if metadata is None else dict(metadata), **{"from": source or None})
    return Call(Request("POST", "/v1/sessions", headers=headers, json=body), SessionInfo.parse)


def fork_session(session_id: str, new_id: str | None, options: ForkOptions) -> Call[SessionInfo]:
    headers, body = _conditions(options)
    body |= _told(new_id=new_id)
    return Call(Request("POST", session_path(session_id, "fork"), headers=headers, json=body), SessionInfo.parse)


def rewind_session(session_id: str, version: int | str, options: RewindOptions) -> Call[SessionCommit]:
    headers, body = _conditions(options)
    body["version"] = version
    return Call(Request("POST", session_path(session_id, "rewind"), headers=headers, json=body), SessionCommit.parse)


def list_versions(session_id: str) -> Call[tuple[SessionVersion, ...]]:
    return Call(Request("GET", session_path(session_id, "versions")), _parse_versions)


def name_version(session_id: str, name: str, version: int | str | None) -> Call[tuple[SessionVersion, ...]]:
    body = _told(name=name, version=version)
    return Call(Request("POST", session_path(session_id, "versions"), json=body), _parse_versions)


def unname_version(session_id: str, name: str) -> Call[tuple[SessionVersion, ...]]:
    return Call(Request("DELETE", session_path(session_id, "versions", name)), _parse_versions)


def export_request(session_id: str, version: int | str | None) -> Request:
    params = {} if version is None else {"version": str(version)}
    # Compressed on its way, its length would say nothing.
    headers = {"Accept-Encoding": "identity"}
    return Request("GET", session_path(session_id, "export"), params=params, headers=headers)


def import_session(session_id: str | None, ttl_seconds: int | None, idempotency_key: str | None) -> Call[SessionInfo]:
    """The body is the file."""
    params = {name: str(value) for name, value in _told(id=session_id, ttl_seconds=ttl_seconds).items()}
    headers = {"Content-Type": OCTETS}
    if idempotency_key is not None:
        headers["Idempotency-Key"] = idempotency_key
    return Call(Request("POST", "/v1/sessions/import", params=params, headers=headers), SessionInfo.parse)


def _parse_versions(value: object) -> tuple[SessionVersion, ...]:
    data = required(as_object(value, "list of versions"), "data", list, "list of versions")
    return tuple(SessionVersion.parse(item) for item in data)


def _told(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _conditions(options: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """Headers, and what is left for the body: there the server refuses a name that it does not know."""
    body, headers = dict(options), {}
    if "if_match" in body:
        headers["If-Match"] = f'"{body.pop("if_match")}"'
    if "idempotency_key" in body:
        headers["Idempotency-Key"] = str(body.pop("idempotency_key"))
    return headers, body

"""What is told about a session: itself, which of its versions are kept, what an answer has made of it, and the headers
beside them. Pure."""

from typing import Any

from engine.sessions import CommittedSession
from engine.stores.base import Generation, Head, SessionKey


def describe_session(session_id: str, head: Head) -> dict[str, Any]:
    mark = head.open_ingest
    return {
        "id": session_id,
        "object": "session",
        "version": head.version,
        "position": head.position,
        "bytes": head.num_bytes,
        "created": head.created,
        "last_used": head.updated,
        "ttl_seconds": head.ttl_seconds,
        "metadata": dict(head.metadata),
        "open_ingest": None if mark is None else {"document_id": mark.document_id, "offset": mark.offset},
        "token_log": None if head.log_num_bytes is None else {"bytes": head.log_num_bytes},
    }


def describe_versions(head: Head) -> dict[str, Any]:
    """All that can be gone back to, newest first."""
    return {"object": "list", "data": [_describe_version(generation, head) for generation in head.generations]}


def session_object(session: CommittedSession) -> dict[str, Any]:
    """What an answer says of its session; `rewound_to` is there only when the session was taken back."""
    rewound = {} if session.rewound_to is None else {"rewound_to": session.rewound_to}
    return {
        "id": session.session_id,
        "version": session.version,
        "committed": session.committed,
        "durability": session.durability,
        "position": session.position,
        **rewound,
    }


def session_headers(key: SessionKey, version: int) -> dict[str, str]:
    return {"X-Session-Id": key.session_id, "X-Session-Version": str(version)}


def _describe_version(generation: Generation, head: Head) -> dict[str, Any]:
    return {
        "object": "session.version",
        "version": generation.version,
        "name": generation.name,
        "position": generation.position,
        "bytes": generation.num_bytes,
        # Unknown for what an older server has committed.
        "created": generation.created or None,
        "committed": generation is head.committed,
    }

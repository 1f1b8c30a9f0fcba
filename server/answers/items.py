"""Messages as the items that /v1/responses and /v1/conversations tell of. Pure."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from engine.sessions import CommittedSession


def learned_item(item_id: str, role: str, text: str) -> dict[str, Any]:
    part = output_text(text) if role == "assistant" else {"type": "input_text", "text": text}
    return message_item(item_id, role, "completed", [part])


def message_item(item_id: str, role: str, status: str, content: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"id": item_id, "type": "message", "role": role, "status": status, "content": list(content)}


def output_text(text: str, logprobs: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def learned_item_id(session: CommittedSession, index: int) -> str:
    """The same for the same commit, so that a repeat is told what the first request was."""
    return f"msg_{sha256(f'{session.session_id} {session.version} {index}'.encode()).hexdigest()[:24]}"

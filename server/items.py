"""Messages as the items that /v1/responses and /v1/conversations tell of. Pure."""

from hashlib import sha256
from typing import Any

from engine.sessions import CommittedSession


def message_item(item_id: str, role: str, text: str, status: str = "completed") -> dict[str, Any]:
    part = output_text(text) if role == "assistant" else {"type": "input_text", "text": text}
    return {"id": item_id, "type": "message", "role": role, "status": status, "content": [part]}


def output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def learned_item_id(session: CommittedSession, index: int) -> str:
    """The same for the same commit, so that a repeat is told what the first request was."""
    return f"msg_{sha256(f'{session.session_id} {session.version} {index}'.encode()).hexdigest()[:24]}"

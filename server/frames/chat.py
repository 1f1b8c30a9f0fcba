"""Answers of /v1/chat/completions: each choice is a message, its chunks are deltas of it."""

from collections.abc import Mapping
from typing import Any

from engine.sessions import Answer
from server.frames.choices import ChoicesFrame


class ChatFrame(ChoicesFrame):
    """The role is said with a choice's first text and not before, so that the time to the first chunk is that to the
    first token."""

    id_prefix = "chatcmpl"
    whole_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def _whole(self, index: int, answer: Answer) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": answer.text, "refusal": None}, "logprobs": None}

    def _said(self, index: int, text: str, *, is_first: bool) -> dict[str, Any]:
        delta = {"role": "assistant", "content": text} if is_first else {"content": text}
        return {"delta": delta, "logprobs": None}

    def _silent(self, index: int, *, is_first: bool) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": ""} if is_first else {}, "logprobs": None}

    def _text_of(self, choice: Mapping[str, Any]) -> str:
        text: str = choice["message"]["content"]
        return text

"""Answers of /v1/chat/completions: each choice is a message, its chunks are deltas of it."""

from collections.abc import Mapping
from typing import Any

from server.frames.choices import ChoicesFrame
from server.frames.logprobs import ContentLogprobs, Telling, TokenNames


class ChatFrame(ChoicesFrame):
    """The role is said with a choice's first text and not before, so that the time to the first chunk is that to the
    first token. names: when log-probabilities are asked for."""

    id_prefix = "chatcmpl"
    whole_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(self, model: str, *, includes_usage: bool, has_running_usage: bool, names: TokenNames | None) -> None:
        super().__init__(model, includes_usage=includes_usage, has_running_usage=has_running_usage)
        self._names = names

    def _whole(self, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}, "logprobs": logprobs}

    def _part(self, text: str, logprobs: dict[str, Any] | None, *, is_first: bool) -> dict[str, Any]:
        delta = {"role": "assistant", "content": text} if is_first else {"content": text}
        return {"delta": delta, "logprobs": logprobs}

    def _end(self, *, is_first: bool) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": ""} if is_first else {}, "logprobs": None}

    def _stored(self, choice: Mapping[str, Any]) -> tuple[str, dict[str, Any] | None]:
        return choice["message"]["content"], choice["logprobs"]

    def _telling(self, index: int) -> Telling | None:
        return None if self._names is None else ContentLogprobs(self._names)

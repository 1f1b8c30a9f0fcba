"""Answers of /v1/completions: each choice is a text, its chunks are pieces of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.sessions import Answer
from server.frames.choices import ChoicesFrame


class CompletionFrame(ChoicesFrame):
    """`echoes`: what each choice's text begins with before its answer, when that is asked for."""

    id_prefix = "cmpl"
    whole_kind = "text_completion"
    chunk_kind = "text_completion"

    def __init__(
        self,
        model: str,
        *,
        includes_usage: bool,
        answer_id: str | None = None,
        created: int | None = None,
        echoes: Sequence[str] = (),
    ) -> None:
        super().__init__(model, includes_usage=includes_usage, answer_id=answer_id, created=created)
        self._echoes = echoes

    def _whole(self, index: int, answer: Answer) -> dict[str, Any]:
        return {"text": self._echo(index) + answer.text, "logprobs": None}

    def _said(self, index: int, text: str, *, is_first: bool) -> dict[str, Any]:
        return {"text": self._echo(index) + text if is_first else text, "logprobs": None}

    def _silent(self, index: int, *, is_first: bool) -> dict[str, Any]:
        return {"text": self._echo(index) if is_first else "", "logprobs": None}

    def _text_of(self, choice: Mapping[str, Any]) -> str:
        text: str = choice["text"]
        return text

    def _echo(self, index: int) -> str:
        return self._echoes[index] if self._echoes else ""

"""Answers of /v1/completions: each choice is a text, its chunks are pieces of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from server.frames.choices import ChoicesFrame
from server.frames.logprobs import Telling, TextLogprobs, TokenNames


class CompletionFrame(ChoicesFrame):
    """echoes: what each choice's text begins with before its answer, when that is asked for.   names: when
    log-probabilities are."""

    id_prefix = "cmpl"
    whole_kind = "text_completion"
    chunk_kind = "text_completion"

    def __init__(
        self,
        model: str,
        *,
        includes_usage: bool,
        has_running_usage: bool,
        echoes: Sequence[str],
        names: TokenNames | None,
    ) -> None:
        super().__init__(model, includes_usage=includes_usage, has_running_usage=has_running_usage)
        self._echoes = echoes
        self._names = names

    def _whole(self, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return {"text": text, "logprobs": logprobs}

    def _part(self, text: str, logprobs: dict[str, Any] | None, *, is_first: bool) -> dict[str, Any]:
        return {"text": text, "logprobs": logprobs}

    def _end(self, *, is_first: bool) -> dict[str, Any]:
        return {"text": "", "logprobs": None}

    def _stored(self, choice: Mapping[str, Any]) -> tuple[str, dict[str, Any] | None]:
        return choice["text"], choice["logprobs"]

    def _telling(self, index: int) -> Telling | None:
        return None if self._names is None else TextLogprobs(self._names, len(self._before(index)))

    def _before(self, index: int) -> str:
        return self._echoes[index] if self._echoes else ""

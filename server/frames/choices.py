"""Answers that are lists of choices, and streams that are chunks of them: what chat and text completions share."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from engine.sessions import Answer, CommittedSession, Usage
from server.errors import error_body
from server.frames.frame import usage_object
from server.session_answer import session_object
from server.streaming import DONE, EventTemplate, event


class ChoicesFrame(ABC):
    """A `Frame`. `created` is in seconds since the epoch; with `includes_usage` a stream's last chunk is the usage."""

    id_prefix: ClassVar[str]
    whole_kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def __init__(
        self, model: str, *, includes_usage: bool, answer_id: str | None = None, created: int | None = None
    ) -> None:
        self.answer_id = answer_id or f"{self.id_prefix}-{uuid.uuid4().hex}"
        self._model = model
        self._includes_usage = includes_usage
        self._created = int(time.time()) if created is None else created
        # Of the choices that have said something, what the rest of their text goes out in.
        self._templates: dict[int, EventTemplate] = {}

    def opened(self, session_id: str | None, version: int) -> None:  # noqa: B027 (a choice says nothing about it)
        """Choices have names of their own."""

    def body(self, answers: Sequence[Answer], usage: Usage, session: CommittedSession | None) -> dict[str, Any]:
        choices = [
            {"index": index, **self._whole(index, answer), "finish_reason": answer.finish_reason.value}
            for index, answer in enumerate(answers)
        ]
        body = {**self._frame(self.whole_kind), "choices": choices, "usage": usage_object(usage)}
        return body if session is None else {**body, "session": session_object(session)}

    def said(self, choice: int, text: str) -> bytes:
        template = self._templates.get(choice)
        if template is not None:
            return template.filled(text)
        blank = self._chunk(choice, self._said(choice, EventTemplate.BLANK, is_first=False))
        self._templates[choice] = EventTemplate(blank)
        return event(self._chunk(choice, self._said(choice, text, is_first=True)))

    def ended(self, body: Mapping[str, Any]) -> Iterator[bytes]:
        """Why each choice has ended, with the first also what became of the session; the usage; the mark of the end."""
        for choice in body["choices"]:
            index = choice["index"]
            fields = self._silent(index, is_first=index not in self._templates)
            chunk = self._chunk(index, fields, choice["finish_reason"])
            yield event({**chunk, "session": body["session"]} if index == 0 and "session" in body else chunk)
        if self._includes_usage:
            yield event({**self._frame(self.chunk_kind), "choices": [], "usage": body["usage"]})
        yield DONE

    def replayed(self, body: Mapping[str, Any]) -> Iterator[bytes]:
        frame = self._of(body)
        for choice in body["choices"]:
            yield frame.said(choice["index"], self._text_of(choice))
        yield from frame.ended(body)

    def failed(self, error: Exception) -> bytes:
        return event(error_body(error))

    @abstractmethod
    def _whole(self, index: int, answer: Answer) -> dict[str, Any]:
        """The fields of a choice that say what was answered."""

    @abstractmethod
    def _said(self, index: int, text: str, *, is_first: bool) -> dict[str, Any]:
        """The fields of a chunk's choice that say more of it."""

    @abstractmethod
    def _silent(self, index: int, *, is_first: bool) -> dict[str, Any]:
        """The same of a choice that ends; `is_first` when it has said nothing."""

    @abstractmethod
    def _text_of(self, choice: Mapping[str, Any]) -> str:
        """What a choice of a stored body says."""

    def _of(self, body: Mapping[str, Any]) -> Self:
        """The frame that a stored answer was made in."""
        return type(self)(
            body["model"], includes_usage=self._includes_usage, answer_id=body["id"], created=body["created"]
        )

    def _chunk(self, index: int, fields: Mapping[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, **fields, "finish_reason": finish_reason}
        return {**self._frame(self.chunk_kind), "choices": [choice]}

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self.answer_id, "object": kind, "created": self._created, "model": self._model}

"""Answers that are lists of choices, and streams that are chunks of them: what chat and text completions share."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from engine.sessions import Answer, CommittedSession, Usage
from server.answers.session_answer import session_object
from server.connections.streaming import DONE, EventTemplate, event
from server.errors import error_body
from server.frames.frame import Said, usage_object
from server.frames.logprobs import Telling


class ChoicesFrame(ABC):
    """A `Frame`. With `includes_usage` a stream ends with the usage, with `has_running_usage` every chunk has it."""

    id_prefix: ClassVar[str]
    whole_kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def __init__(self, model: str, *, includes_usage: bool, has_running_usage: bool) -> None:
        # What all of it begins with; `created` is in seconds since the epoch.
        self._of_answer = {"id": f"{self.id_prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._includes_usage = includes_usage
        self.has_running_usage = has_running_usage
        # Of the choices that have said something, what the rest of their text goes out in.
        self._templates: dict[int, EventTemplate] = {}
        self._tellings: dict[int, Telling | None] = {}

    def opened(self, session_id: str | None, version: int) -> None:  # noqa: B027 (a choice says nothing about it)
        """Choices have names of their own."""

    def body(self, answers: Sequence[Answer], usage: Usage, session: CommittedSession | None) -> dict[str, Any]:
        choices = []
        for index, answer in enumerate(answers):
            telling = self._telling(index)
            logprobs = None if telling is None else telling.told(answer.logprobs, answer.prompt)
            fields = self._whole(self._before(index) + answer.text, logprobs)
            choices.append({"index": index, **fields, "finish_reason": answer.finish_reason.value})
        body = {**self._named(self.whole_kind), "choices": choices, "usage": usage_object(usage)}
        return body if session is None else {**body, "session": session_object(session)}

    def said(self, said: Said) -> bytes:
        index, text = said.choice, said.text
        template = self._templates.get(index)
        if template is not None and not said.logprobs and said.usage is None:
            return template.filled(text)
        is_first = template is None
        if is_first:
            blank = self._chunk(index, self._part(EventTemplate.BLANK, None, is_first=False))
            self._templates[index] = EventTemplate(blank)
            self._tellings[index] = self._telling(index)
            text = self._before(index) + text
        telling = self._tellings[index]
        logprobs = None if telling is None else telling.told(said.logprobs, said.prompt)
        chunk = self._chunk(index, self._part(text, logprobs, is_first=is_first))
        return event(chunk if said.usage is None else {**chunk, "usage": usage_object(said.usage)})

    def ended(self, body: Mapping[str, Any]) -> Iterator[bytes]:
        """What has not been said; then why each choice has ended, with the first also what became of the session; the
        usage; the mark of the end."""
        silent = [choice for choice in body["choices"] if choice["index"] not in self._templates]
        told = [choice for choice in silent if self._stored(choice)[0]]
        yield from self._stored_parts(body, told)
        yield from self._ends(body, {choice["index"] for choice in silent} - {choice["index"] for choice in told})

    def replayed(self, body: Mapping[str, Any]) -> Iterator[bytes]:
        self._of_answer = {name: body[name] for name in self._of_answer}
        yield from self._stored_parts(body, body["choices"])
        yield from self._ends(body, silent=())

    def failed(self, error: Exception) -> bytes:
        return event(error_body(error))

    @abstractmethod
    def _whole(self, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """The fields of a whole choice that say what was answered."""

    @abstractmethod
    def _part(self, text: str, logprobs: dict[str, Any] | None, *, is_first: bool) -> dict[str, Any]:
        """The fields of a chunk's choice that say more of it."""

    @abstractmethod
    def _end(self, *, is_first: bool) -> dict[str, Any]:
        """The same of a choice that ends; `is_first` when it has said nothing."""

    @abstractmethod
    def _stored(self, choice: Mapping[str, Any]) -> tuple[str, dict[str, Any] | None]:
        """The text and the log-probabilities that `_whole` has been given."""

    @abstractmethod
    def _telling(self, index: int) -> Telling | None:
        """A new one, when log-probabilities are asked for."""

    def _before(self, index: int) -> str:
        """What a choice's text begins with before its answer."""
        return ""

    def _stored_parts(self, body: Mapping[str, Any], choices: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
        for choice in choices:
            chunk = self._chunk(choice["index"], self._part(*self._stored(choice), is_first=True))
            yield event(self._with_usage(chunk, body))

    def _ends(self, body: Mapping[str, Any], silent: Collection[int]) -> Iterator[bytes]:
        for choice in body["choices"]:
            index = choice["index"]
            chunk = self._chunk(index, self._end(is_first=index in silent), choice["finish_reason"])
            chunk = self._with_usage(chunk, body)
            yield event({**chunk, "session": body["session"]} if index == 0 and "session" in body else chunk)
        if self._includes_usage:
            yield event({**self._named(self.chunk_kind), "choices": [], "usage": body["usage"]})
        yield DONE

    def _with_usage(self, chunk: dict[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
        return {**chunk, "usage": body["usage"]} if self.has_running_usage else chunk

    def _chunk(self, index: int, fields: Mapping[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, **fields, "finish_reason": finish_reason}
        return {**self._named(self.chunk_kind), "choices": [choice]}

    def _named(self, kind: str) -> dict[str, Any]:
        return {**self._of_answer, "object": kind}

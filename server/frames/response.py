"""Answers of /v1/responses: one message of one text, or the events in which it comes about."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.sampling.logprobs import TokenLogprob
from engine.sequence import FinishReason
from engine.sessions import Answer, CommittedSession, Usage
from server.answers.items import message_item, output_text
from server.answers.response_ids import ResponseId, new_mark, unkept_id
from server.answers.session_answer import session_object
from server.frames.frame import Said
from server.frames.logprobs import ContentLogprobs, TokenNames
from server.frames.response_events import ResponseEvents, replayed_events


class ResponseFrame:
    """A `Frame`. told: what the response says of its request.   names: when log-probabilities are asked for."""

    has_running_usage = False

    def __init__(self, model: str, told: Mapping[str, Any], names: TokenNames | None) -> None:
        self._mark = new_mark()
        self._begun = {
            "id": unkept_id(self._mark),
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "model": model,
            "output": [],
            "status": "in_progress",
            "usage": None,
            **told,
        }
        self._names = names
        self._events: ResponseEvents | None = None
        # Of the events: their tokens come one by one.
        self._telling = ContentLogprobs(names) if names else None

    def opened(self, session_id: str | None, version: int) -> None:
        if session_id is not None:
            self._begun["id"] = str(ResponseId(session_id, version, self._mark))

    def body(self, answers: Sequence[Answer], usage: Usage, session: CommittedSession | None) -> dict[str, Any]:
        (answer,) = answers
        is_whole = answer.finish_reason is FinishReason.STOP
        status = "completed" if is_whole else "incomplete"
        logprobs = _logprobs(ContentLogprobs(self._names) if self._names else None, answer.logprobs)
        body = {
            **self._begun,
            "completed_at": int(time.time()) if is_whole else None,
            "incomplete_details": None if is_whole else {"reason": "max_output_tokens"},
            "output": [message_item(self._item_id, "assistant", status, [output_text(answer.text, logprobs)])],
            "status": status,
            "usage": _usage_object(usage),
        }
        return body if session is None else {**body, "session": session_object(session)}

    def said(self, said: Said) -> bytes:
        logprobs = _logprobs(self._telling, said.logprobs)
        if self._events is not None:
            return self._events.said(said.text, logprobs)
        self._events = ResponseEvents(self._begun, self._item_id)
        opening = (*self._events.begun(), *self._events.opened())
        return b"".join((*opening, self._events.said(said.text, logprobs)))

    def ended(self, body: Mapping[str, Any]) -> Iterator[bytes]:
        if self._events is None:
            yield from replayed_events(body)
        else:
            yield from self._events.ended(body)

    def replayed(self, body: Mapping[str, Any]) -> Iterator[bytes]:
        return replayed_events(body)

    def failed(self, error: Exception) -> bytes:
        if self._events is not None:
            return b"".join(self._events.failed(error))
        # Only a sign of life was sent.
        events = ResponseEvents(self._begun, self._item_id)
        return b"".join((*events.begun(), *events.failed(error)))

    @property
    def _item_id(self) -> str:
        return f"msg_{self._mark}"


def _logprobs(telling: ContentLogprobs | None, logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """As a chat tells them, but that a token which is no text has no bytes."""
    if telling is None:
        return []
    content = telling.told(logprobs, None)["content"]
    for entry in (each for token in content for each in (token, *token["top_logprobs"])):
        entry["bytes"] = entry["bytes"] or []
    return list(content)


def _usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.num_prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.num_cached_tokens,
            "cache_write_tokens": usage.num_written_tokens,
        },
        "output_tokens": usage.num_completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.num_prompt_tokens + usage.num_completion_tokens,
    }

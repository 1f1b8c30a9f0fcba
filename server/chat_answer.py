"""An answer in the words of OpenAI's clients: one completion, or the chunks that say the same. Pure."""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.sessions import Answer, CommittedSession, Usage


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """The frame of one answer; `created` is in seconds since the epoch."""

    model: str
    answer_id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of_completion(cls, completion: Mapping[str, Any]) -> "ChatAnswer":
        """The frame of a stored answer."""
        return cls(completion["model"], completion["id"], completion["created"])

    def completion(self, answers: Sequence[Answer], usage: Usage, session: CommittedSession | None) -> dict[str, Any]:
        choices = [_choice(index, answer) for index, answer in enumerate(answers)]
        body = {**self._frame("chat.completion"), "choices": choices, "usage": _usage(usage)}
        return body if session is None else {**body, "session": session_object(session)}

    def text_chunk(self, choice: int, text: str, *, is_first: bool) -> dict[str, Any]:
        delta = {"role": "assistant", "content": text} if is_first else {"content": text}
        return self._chunk([_chunk_choice(choice, delta, None)])

    def finish_chunk(self, completion: Mapping[str, Any], choice: int, *, is_first: bool) -> dict[str, Any]:
        """The chunk that says why a choice ended; the first choice's also what became of the session."""
        delta = {"role": "assistant", "content": ""} if is_first else {}
        chunk = self._chunk([_chunk_choice(choice, delta, completion["choices"][choice]["finish_reason"])])
        return {**chunk, "session": completion["session"]} if choice == 0 and "session" in completion else chunk

    def usage_chunk(self, completion: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._chunk([]), "usage": completion["usage"]}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._frame("chat.completion.chunk"), "choices": choices}

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self.answer_id, "object": kind, "created": self.created, "model": self.model}


def session_object(session: CommittedSession) -> dict[str, Any]:
    """`rewound_to` is there only when the session was taken back."""
    rewound = {} if session.rewound_to is None else {"rewound_to": session.rewound_to}
    return {
        "id": session.session_id,
        "version": session.version,
        "committed": session.committed,
        "durability": session.durability,
        "position": session.position,
        **rewound,
    }


def _choice(index: int, answer: Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": answer.finish_reason.value}


def _chunk_choice(index: int, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_completion_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.num_cached_tokens,
            "cache_write_tokens": usage.num_written_tokens,
        },
    }

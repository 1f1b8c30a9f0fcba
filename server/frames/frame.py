"""What a kind of answer is on the wire: a whole body, or the events that say the same. Every kind has its module here.

A third kind is a route that makes a `TurnRequest` and a frame of its own; what runs the turn and what sends the answer
(`answering`, `replying`) know only this.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from engine.sampling.logprobs import TokenLogprob
from engine.sessions import Answer, CommittedSession, ReadPrompt, Usage


class Said(NamedTuple):
    """More text of one choice. One is made for every token, and a tuple is made in a third of a dataclass' time.

    logprobs: of the tokens that this makes whole, when they are asked for.
    prompt: what it answers, once for a choice, when the prompt's are.
    usage: of all choices up to here, for frames that tell it."""

    choice: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt: ReadPrompt | None = None
    usage: Usage | None = None


# To tell of one token is about as much work as so many bytes of a body.
TELLING_NUM_BYTES = 400


class Frame(Protocol):
    """One answer's."""

    @property
    def has_running_usage(self) -> bool:
        """Whether every event says what has been used so far."""

    def opened(self, session_id: str | None, version: int) -> None:
        """Before anything else: the session that the turn writes to, if any, and the version that it will make."""

    def body(self, answers: Sequence[Answer], usage: Usage, session: CommittedSession | None) -> dict[str, Any]:
        """The whole answer as it is sent, and stored with the turn."""

    def said(self, said: Said) -> bytes:
        """The event, or events, of more text of a choice; what has to be said before its first included."""

    def ended(self, body: Mapping[str, Any]) -> Iterator[bytes]:
        """The events after the last text, once `body` is committed."""

    def replayed(self, body: Mapping[str, Any]) -> Iterator[bytes]:
        """All events of an answer that an earlier request has committed."""

    def failed(self, error: Exception) -> bytes:
        """The event that ends an answer of which something has been said."""


def usage_object(usage: Usage) -> dict[str, Any]:
    """Of the kinds whose tokens are the prompt's and the completion's."""
    return {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_completion_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.num_cached_tokens,
            "cache_write_tokens": usage.num_written_tokens,
        },
    }

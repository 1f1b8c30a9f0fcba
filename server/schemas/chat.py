"""The body of /v1/chat/completions."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from engine.errors import InvalidRequest
from engine.sampling.sampling_params import MAX_NUM_TOP_LOGPROBS
from engine.sessions import History, Message
from server.schemas.base import Body, with_examples
from server.schemas.generation import ChoicesRequest


class TextPart(Body):
    type: Literal["text"]
    text: str


def _joined(content: Any) -> Any:
    """A list of text parts is their text; an assistant's null is an empty text."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(TextPart.model_validate(part).text for part in content)
    return content


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined, json_schema_input_type=str | list[TextPart] | None)] = ""

    def to_message(self) -> Message:
        return Message("system" if self.role == "developer" else self.role, self.content)


class ChatRequest(ChoicesRequest):
    """POST /v1/chat/completions."""

    model_config = with_examples(
        {
            "model": "atlas-demo",
            "messages": [{"role": "user", "content": "Where is Mary?"}],
            "session_id": "demo",
            "temperature": 0,
            "max_tokens": 16,
        },
        {
            "messages": [
                {"role": "system", "content": "Answer in one word."},
                {"role": "user", "content": "Where is Mary?"},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 16,
        },
    )

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_NUM_TOP_LOGPROBS)] | None = None
    history: Literal["auto", "new", "match"] | None = None
    on_divergence: Literal["error", "rewind"] | None = None

    def to_messages(self) -> tuple[Message, ...]:
        return tuple(message.to_message() for message in self.messages)

    def to_history(self) -> History:
        return History(self.history or History.AUTO)

    @property
    def num_top_logprobs(self) -> int | None:
        if not self.logprobs and self.top_logprobs:
            raise InvalidRequest("top_logprobs needs logprobs", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def _max_tokens(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is None:
            return super()._max_tokens()
        if self.max_tokens not in (None, self.max_completion_tokens):
            raise InvalidRequest("max_tokens and max_completion_tokens differ", param="max_completion_tokens")
        return "max_completion_tokens", self.max_completion_tokens

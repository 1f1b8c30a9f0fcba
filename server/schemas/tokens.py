"""The bodies of /tokenize and /detokenize."""

from typing import Self

from pydantic import model_validator

from engine.errors import InvalidRequest
from server.schemas.base import ClosedBody, with_examples
from server.schemas.chat import ChatMessage


class TokenizeRequest(ClosedBody):
    """POST /tokenize. One of `text`, `prompt` and `messages`: the last two as vLLM's clients send them, and as they
    would be read at the beginning of a session unless `add_special_tokens` says otherwise of a prompt."""

    model_config = with_examples({"text": "Mary went to the garden."})

    model: str | None = None
    text: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _is_of_one_thing(self) -> Self:
        if sum(each is not None for each in (self.text, self.prompt, self.messages)) != 1:
            raise InvalidRequest("one of text, prompt and messages must be there", param="text")
        if self.messages is None and self.add_generation_prompt is not None:
            raise InvalidRequest("add_generation_prompt needs messages", param="add_generation_prompt")
        if self.messages is not None and self.add_special_tokens:
            raise InvalidRequest("messages have their special tokens already", param="add_special_tokens")
        return self

    @property
    def raw_text(self) -> str:
        return self.text if self.text is not None else self.prompt or ""

    @property
    def begins_session(self) -> bool:
        """Whether the text is read as the first of a session."""
        return self.text is None if self.add_special_tokens is None else self.add_special_tokens


class DetokenizeRequest(ClosedBody):
    """POST /detokenize."""

    model_config = with_examples({"tokens": [40, 41, 42]})

    tokens: list[int]
    model: str | None = None

"""The bodies of /tokenize and /detokenize."""

from engine.errors import InvalidRequest
from server.schemas.base import ClosedBody, with_examples


class TokenizeRequest(ClosedBody):
    """POST /tokenize. The text may be called `prompt`, as vLLM's clients do.

    add_special_tokens: begin with what begins every session.
    """

    model_config = with_examples({"text": "Mary went to the garden."})

    text: str | None = None
    prompt: str | None = None
    model: str | None = None
    add_special_tokens: bool | None = None

    @property
    def to_encode(self) -> str:
        """Raises InvalidRequest unless there is one text."""
        if self.text is None and self.prompt is not None:
            return self.prompt
        if self.text is None or self.prompt is not None:
            raise InvalidRequest("a text is needed, as text or as prompt", param="text")
        return self.text


class DetokenizeRequest(ClosedBody):
    """POST /detokenize."""

    model_config = with_examples({"tokens": [40, 41, 42]})

    tokens: list[int]
    model: str | None = None

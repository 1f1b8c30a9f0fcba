"""Items of a response's input and of a conversation: messages of text."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from engine.sessions import Message
from server.schemas.base import Body


class ItemPart(Body):
    """`input_text` is the user's, `output_text` the model's; `text` is either's."""

    type: Literal["input_text", "output_text", "text"]
    text: str


def _joined(content: Any) -> Any:
    if isinstance(content, list):
        return "".join(ItemPart.model_validate(part).text for part in content)
    return content


class Item(Body):
    """A message. Its id and status, which an answer's has when it is sent back, say nothing here."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined, json_schema_input_type=str | list[ItemPart])]

    def to_message(self) -> Message:
        return Message("system" if self.role == "developer" else self.role, self.content)


Items = Annotated[list[Item], Field(min_length=1)]

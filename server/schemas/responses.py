"""The body of /v1/responses."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from engine.errors import EmptyPrompt, InvalidRequest
from engine.sampling.sampling_params import MAX_NUM_TOP_LOGPROBS
from engine.sessions import History, Message
from server.schemas.base import Body, with_examples
from server.schemas.generation import GenerationRequest
from server.schemas.items import Item

LOGPROBS = "message.output_text.logprobs"
# All but the first say more of reasoning, tool calls and images, of which no answer here has any.
Includable = Literal[
    "message.output_text.logprobs",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]


class ResponseStreamOptions(Body):
    """Nothing is added to hide how long the pieces of a text are."""

    include_obfuscation: Literal[False] | None = None


class ConversationReference(Body):
    id: str


def _id_of(conversation: Any) -> Any:
    return ConversationReference.model_validate(conversation).id if isinstance(conversation, dict) else conversation


class ResponseRequest(GenerationRequest):
    """POST /v1/responses."""

    model_config = with_examples(
        {"model": "atlas-demo", "input": "Where is Mary?", "max_output_tokens": 16},
        {"input": [{"role": "user", "content": "And John?"}], "stream": True, "max_output_tokens": 16},
    )

    input: str | list[Item]
    instructions: str | None = None
    conversation: Annotated[
        str | None, BeforeValidator(_id_of, json_schema_input_type=str | ConversationReference | None)
    ] = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    include: list[Includable] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_NUM_TOP_LOGPROBS)] | None = None
    history: Literal["auto", "new", "match"] | None = None
    on_divergence: Literal["error", "rewind"] | None = None

    def to_messages(self) -> tuple[Message, ...]:
        """The instructions, then the input. Raises InvalidRequest when the last word is not the user's."""
        items = [Message("user", self.input)] if isinstance(self.input, str) else [i.to_message() for i in self.input]
        spoken = [message for message in items if message.role != "system"]
        if not spoken:
            raise EmptyPrompt("the input has no message to answer", param="input")
        if spoken[-1].role != "user":
            raise InvalidRequest("the last message of the input must be the user's", param="input")
        if not spoken[-1].content:
            raise EmptyPrompt("the last message of the input is empty", param="input")
        return (*([] if self.instructions is None else [Message("system", self.instructions)]), *items)

    def to_history(self) -> History:
        """What is said to a conversation, or after a response, is new; a session that is named otherwise is compared,
        as in a chat."""
        is_new = self.conversation is not None or self.previous_response_id is not None
        return History(self.history or (History.NEW if is_new else History.AUTO))

    @property
    def num_top_logprobs(self) -> int | None:
        is_asked = LOGPROBS in (self.include or ())
        if self.top_logprobs and not is_asked:
            raise InvalidRequest(f"top_logprobs needs include: {LOGPROBS}", param="top_logprobs")
        return (self.top_logprobs or 0) if is_asked else None

    def told(self, *, is_kept: bool) -> Mapping[str, Any]:
        """What the response says of its request: what was asked for, and how it is where nothing can be asked."""
        return {
            "background": False,
            "conversation": None if self.conversation is None else {"id": self.conversation},
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": False,
            "previous_response_id": self.previous_response_id,
            "reasoning": {"effort": None, "summary": None},
            "store": is_kept,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "truncation": "disabled",
            "user": self.user,
        }

    def _max_tokens(self) -> tuple[str, int | None]:
        return "max_output_tokens", self.max_output_tokens

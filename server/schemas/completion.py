"""The body of /v1/completions."""

from typing import Annotated, Any

from pydantic import Field, PlainValidator

from engine.errors import EmptyPrompt, InvalidRequest
from engine.sampling.sampling_params import MAX_NUM_TOP_LOGPROBS
from engine.sessions import Prompt
from server.schemas.base import with_examples
from server.schemas.generation import ChoicesRequest


def _prompts(value: Any) -> tuple[Prompt, ...]:
    """One prompt or several, by hand: a list of a million ids is tried as each kind of list by no one."""
    if isinstance(value, str) or (isinstance(value, list) and value and _is_id(value[0])):
        return (_prompt(value, "prompt"),)
    if not isinstance(value, list):
        raise InvalidRequest("prompt must be a string, a list of strings, token ids, or lists of token ids", "prompt")
    if not value:
        raise EmptyPrompt("there is no prompt", param="prompt")
    return tuple(_prompt(each, f"prompt[{index}]") for index, each in enumerate(value))


def _prompt(value: Any, param: str) -> Prompt:
    if not isinstance(value, str | list):
        raise InvalidRequest(f"{param} must be a string or a list of token ids", param=param)
    if not value:
        raise EmptyPrompt(f"{param} is empty", param=param)
    if isinstance(value, str):
        return value
    wrong = next((index for index, each in enumerate(value) if not _is_id(each)), None)
    if wrong is not None:
        raise InvalidRequest(f"{param}[{wrong}] must be a token id", param=f"{param}[{wrong}]")
    return tuple(value)


def _is_id(value: Any) -> bool:
    # True is an int, and no id.
    return type(value) is int


Prompts = Annotated[
    tuple[Prompt, ...],
    PlainValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]


class CompletionRequest(ChoicesRequest):
    """POST /v1/completions."""

    model_config = with_examples(
        {"model": "atlas-demo", "prompt": "Mary went to the", "max_tokens": 8},
        {"prompt": ["One", "Two"], "max_tokens": 2},
    )

    prompt: Prompts
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_NUM_TOP_LOGPROBS)] | None = None

    @property
    def num_answers(self) -> int:
        return len(self.prompt) * self.num_choices

    @property
    def num_top_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def num_top_prompt_logprobs(self) -> int | None:
        return self.logprobs if self.echo else None

    @property
    def may_answer_nothing(self) -> bool:
        return bool(self.echo)

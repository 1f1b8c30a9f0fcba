"""The names that requests of this and of other servers have, as data."""

from collections.abc import Callable, Mapping
from typing import Any

# Whether a value asks for nothing.
Neutral = Callable[[Any], bool]

# Our own, near which no unknown name is ignored.
EXTENSIONS = ("session_id", "history", "on_divergence", "read_only")


def _one_of(*neutral: Any) -> Neutral:
    """True is not 1 here, and [] is not False."""
    return lambda value: any(type(value) is type(item) and value == item for item in neutral)


def _number(neutral: float) -> Neutral:
    return lambda value: type(value) in (int, float) and value == neutral


def _any_count(value: Any) -> bool:
    return type(value) is int


def _no_reasoning(value: Any) -> bool:
    return isinstance(value, dict) and all(wish in (None, "none") for wish in value.values())


_OFF = _one_of(False)
_EMPTY = _one_of([], {}, "")
_ANY_SWITCH = _one_of(False, True)
NEVER = _one_of()

# What some kind of request has, here or elsewhere, each name with the values that ask for nothing; null always does.
# A kind of request that does not serve one refuses it with any other value.
KNOWN: Mapping[str, Neutral] = {
    # Ours
    "history": _one_of("auto", "new"),
    "on_divergence": _one_of("error"),
    # OpenAI
    "audio": NEVER,
    "background": _OFF,
    "best_of": _number(1),
    "context_management": _EMPTY,
    "conversation": NEVER,
    "echo": _OFF,
    "function_call": _one_of("none", "auto"),
    "functions": _EMPTY,
    "image": _EMPTY,
    "include": _EMPTY,
    "input": NEVER,
    "instructions": NEVER,
    "logprobs": _OFF,
    "max_completion_tokens": NEVER,
    "max_output_tokens": NEVER,
    "max_tokens": NEVER,
    # Nor how many there may be.
    "max_tool_calls": _any_count,
    "messages": NEVER,
    "modalities": _one_of(["text"]),
    "moderation": NEVER,
    "n": _number(1),
    # Whether tools run in parallel says nothing when there are none.
    "parallel_tool_calls": _ANY_SWITCH,
    "prediction": NEVER,
    "previous_response_id": NEVER,
    "prompt": NEVER,
    "reasoning": _no_reasoning,
    "reasoning_effort": _one_of("none"),
    "response_format": _one_of({"type": "text"}),
    "store": _OFF,
    "suffix": NEVER,
    "text": _one_of({}, {"format": {"type": "text"}}),
    "tool_choice": _one_of("none", "auto"),
    "tools": _EMPTY,
    "top_logprobs": _number(0),
    # There is no end of the context that anything could be cut off at.
    "truncation": _one_of("auto", "disabled"),
    "verbosity": NEVER,
    "web_search_options": NEVER,
    # vLLM
    "add_generation_prompt": _one_of(True),
    "add_special_tokens": _OFF,
    "allowed_token_ids": NEVER,
    "bad_words": _EMPTY,
    "chat_template": NEVER,
    "chat_template_kwargs": _EMPTY,
    "continue_final_message": _OFF,
    "documents": _EMPTY,
    "guided_choice": NEVER,
    "guided_grammar": NEVER,
    "guided_json": NEVER,
    "guided_regex": NEVER,
    "include_stop_str_in_output": _OFF,
    "kv_transfer_params": NEVER,
    "length_penalty": _number(1),
    "logits_processors": _EMPTY,
    "mm_processor_kwargs": _EMPTY,
    "priority": _number(0),
    "prompt_logprobs": _OFF,
    "return_token_ids": _OFF,
    "return_tokens_as_token_ids": _OFF,
    "skip_special_tokens": _one_of(True),
    "spaces_between_special_tokens": _one_of(True),
    "structured_outputs": NEVER,
    "truncate_prompt_tokens": NEVER,
    "use_beam_search": _OFF,
}
KNOWN_IN_STREAM_OPTIONS: Mapping[str, Neutral] = {"include_obfuscation": _OFF}
KNOWN_IN_MESSAGES: Mapping[str, Neutral] = {
    "audio": NEVER,
    "function_call": NEVER,
    "name": NEVER,
    "refusal": NEVER,
    "tool_call_id": NEVER,
    "tool_calls": _EMPTY,
}

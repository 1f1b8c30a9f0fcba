"""What to do with each field of a request: serve it, refuse it by name, or ignore it and say so (API.md).

A field that we know and do not serve is refused unless its value asks for nothing (`logprobs: false`). A field that
looks like a misspelt one of our own is refused too, since dropping it would lose the session it meant to name.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from engine.errors import InvalidRequest, UnsupportedParameter

# Fields of a chat request that `schemas.ChatRequest` serves.
SERVED = frozenset(
    {
        "model",
        "messages",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "stop",
        "ignore_eos",
        "min_tokens",
        "user",
        "metadata",
        "session_id",
        "history",
        "on_divergence",
        "read_only",
    }
)
EXTENSIONS = ("session_id", "history", "on_divergence", "read_only")
MAX_TYPOS = 2
_REPORTED_NAME = re.compile(r"[a-z_]{1,64}")


def _one_of(*neutral: Any) -> Callable[[Any], bool]:
    """True is not 1 here, and [] is not False."""
    return lambda value: any(type(value) is type(item) and value == item for item in neutral)


def _number(neutral: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and value == neutral


_OFF = _one_of(False)
_EMPTY = _one_of([], {}, "")
_ANY_SWITCH = _one_of(False, True)
_NEVER = _one_of()

# Known elsewhere and not served here, each with the values that ask for nothing; null always does.
UNSUPPORTED: Mapping[str, Callable[[Any], bool]] = {
    # OpenAI
    "audio": _NEVER,
    "best_of": _number(1),
    "frequency_penalty": _number(0),
    "function_call": _one_of("none", "auto"),
    "functions": _EMPTY,
    "logit_bias": _EMPTY,
    "logprobs": _OFF,
    "modalities": _one_of(["text"]),
    # Whether tools run in parallel says nothing when there are none.
    "parallel_tool_calls": _ANY_SWITCH,
    "prediction": _NEVER,
    "presence_penalty": _number(0),
    "reasoning_effort": _one_of("none"),
    "response_format": _one_of({"type": "text"}),
    "store": _OFF,
    "tool_choice": _one_of("none", "auto"),
    "tools": _EMPTY,
    "top_logprobs": _number(0),
    "verbosity": _NEVER,
    "web_search_options": _NEVER,
    # vLLM
    "add_generation_prompt": _one_of(True),
    "add_special_tokens": _OFF,
    "allowed_token_ids": _NEVER,
    "bad_words": _EMPTY,
    "chat_template": _NEVER,
    "chat_template_kwargs": _EMPTY,
    "continue_final_message": _OFF,
    "documents": _EMPTY,
    "echo": _OFF,
    "guided_choice": _NEVER,
    "guided_grammar": _NEVER,
    "guided_json": _NEVER,
    "guided_regex": _NEVER,
    "include_stop_str_in_output": _OFF,
    "kv_transfer_params": _NEVER,
    "length_penalty": _number(1),
    "logits_processors": _EMPTY,
    "min_p": _number(0),
    "mm_processor_kwargs": _EMPTY,
    "priority": _number(0),
    "prompt_logprobs": _OFF,
    "repetition_penalty": _number(1),
    "return_token_ids": _OFF,
    "return_tokens_as_token_ids": _OFF,
    "skip_special_tokens": _one_of(True),
    "spaces_between_special_tokens": _one_of(True),
    "stop_token_ids": _EMPTY,
    "structured_outputs": _NEVER,
    "suffix": _NEVER,
    "truncate_prompt_tokens": _NEVER,
    "use_beam_search": _OFF,
}
_UNSUPPORTED_IN_STREAM_OPTIONS = {"include_obfuscation": _OFF, "continuous_usage_stats": _OFF}
_UNSUPPORTED_IN_MESSAGES = {
    "audio": _NEVER,
    "function_call": _NEVER,
    "name": _NEVER,
    "refusal": _NEVER,
    "tool_call_id": _NEVER,
    "tool_calls": _EMPTY,
}
_UNSUPPORTED_ROLES = ("tool", "function")


def review_chat_fields(body: Mapping[str, Any]) -> list[str]:
    """The names to list as ignored. Raises UnsupportedParameter, and InvalidRequest for what looks misspelt."""
    _refuse_known(body, UNSUPPORTED, "")
    stream_options = body.get("stream_options")
    if isinstance(stream_options, dict):
        _refuse_known(stream_options, _UNSUPPORTED_IN_STREAM_OPTIONS, "stream_options.")
    messages = body.get("messages")
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict):
            _refuse_message(message, f"messages[{index}]")
    ignored = []
    for name in body:
        if name in SERVED or name in UNSUPPORTED:
            continue
        meant = next((known for known in EXTENSIONS if is_within(name, known, MAX_TYPOS)), None)
        if meant is not None:
            raise InvalidRequest(f"unknown parameter: did you mean {meant}?", param=shown_name(name))
        if _REPORTED_NAME.fullmatch(name):
            ignored.append(name)
    return ignored


def is_within(left: str, right: str, limit: int) -> bool:
    """Whether `left` becomes `right` by at most `limit` letters added, dropped or changed."""
    if abs(len(left) - len(right)) > limit:
        return False
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(right, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1] <= limit


def _refuse_message(message: Mapping[str, Any], where: str) -> None:
    _refuse_known(message, _UNSUPPORTED_IN_MESSAGES, f"{where}.")
    if message.get("role") in _UNSUPPORTED_ROLES:
        raise UnsupportedParameter("tools are not supported", param=f"{where}.role")
    content = message.get("content")
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] != "text":
            raise UnsupportedParameter("only text content is supported", param=f"{where}.content[{index}].type")


def _refuse_known(fields: Mapping[str, Any], known: Mapping[str, Callable[[Any], bool]], prefix: str) -> None:
    for name, value in fields.items():
        if name in known and value is not None and not known[name](value):
            raise UnsupportedParameter(f"{prefix}{name} is not supported with this value", param=f"{prefix}{name}")


def shown_name(name: str) -> str | None:
    """Input is not echoed, except for what can only be a name."""
    return name if _REPORTED_NAME.fullmatch(name) else None

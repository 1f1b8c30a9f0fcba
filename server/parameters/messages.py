"""What of a chat's messages is more than text, and so refused by name."""

from collections.abc import Mapping
from typing import Any

from engine.errors import UnsupportedParameter
from server.parameters.known import KNOWN_IN_MESSAGES
from server.parameters.review import refuse_known

_TOOLS_ROLES = ("tool", "function")


def review_messages(messages: Any) -> None:
    """`messages` as they were sent; what is none at all is for the schema to refuse. Raises UnsupportedParameter."""
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict):
            _review_message(message, f"messages[{index}]")


def _review_message(message: Mapping[str, Any], where: str) -> None:
    refuse_known(message, KNOWN_IN_MESSAGES, f"{where}.")
    if message.get("role") in _TOOLS_ROLES:
        raise UnsupportedParameter("tools are not supported", param=f"{where}.role")
    content = message.get("content")
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] != "text":
            raise UnsupportedParameter("only text content is supported", param=f"{where}.content[{index}].type")

"""What of a response's or a conversation's items is more than text, and so refused by name."""

from collections.abc import Mapping
from typing import Any

from engine.errors import UnsupportedParameter

_TEXTS = ("input_text", "output_text", "text")


def review_items(items: Any, name: str) -> None:
    """`items` as they were sent in the field `name`; what is no list is for the schema. Raises UnsupportedParameter."""
    for index, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict):
            _review_item(item, f"{name}[{index}]")


def _review_item(item: Mapping[str, Any], where: str) -> None:
    if isinstance(item.get("type", "message"), str) and item.get("type", "message") != "message":
        raise UnsupportedParameter("only items of type message are supported", param=f"{where}.type")
    content = item.get("content")
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] not in _TEXTS:
            raise UnsupportedParameter("only text content is supported", param=f"{where}.content[{index}].type")

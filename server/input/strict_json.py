"""JSON as a program can trust it: UTF-8, finite numbers, no key twice, no half of a character, no endless nesting."""

import json
from typing import Any, NoReturn

from engine.errors import InvalidRequest, InvalidUnicode

MAX_DEPTH = 1000


def parse_object(raw: bytes) -> dict[str, Any]:
    """The object that `raw` is. Raises InvalidRequest or InvalidUnicode; messages say where, never what."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidUnicode(f"the body is not UTF-8 at byte {error.start}") from error
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: line {error.lineno} column {error.colno}") from error
    except RecursionError as error:
        raise InvalidRequest("the body is nested too deeply") from error
    except ValueError as error:
        # Python refuses integers of thousands of digits.
        raise InvalidRequest("the body holds a number that is too long") from error
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    _check_strings(value)
    return value


def canonical(value: Any) -> bytes:
    """The same bytes for the same JSON value, whatever the order of its keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _check_strings(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _check_unicode(item)
            elif isinstance(item, dict):
                below.extend(item.keys())
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return
        level = below
    raise InvalidRequest("the body is nested too deeply")


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidUnicode("a string of the body holds a lone surrogate") from error


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest("the body holds a number that is not finite")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise InvalidRequest("the body holds a number that is not finite")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise InvalidRequest("the body holds a key twice")
    return unique

"""What a request says before its body, as a program can trust it: nothing twice that is meant once, and a query that
is text. One check for all routes; what each parameter may be is said where it is read.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError
from starlette.requests import Request

from engine.errors import InvalidRequest, InvalidUnicode
from server.names import shown_name

MAX_QUERY_NUM_BYTES = 8192
MAX_NUM_PARAMETERS = 32
# A second one would be another session, key or condition, and which of them is meant nobody can know.
SINGLE_HEADERS = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-type",
        b"host",
        b"idempotency-key",
        b"if-match",
        b"x-session-id",
    }
)
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DIGITS = re.compile(r"-?[0-9]{1,20}")


def check_headers(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raises InvalidRequest."""
    counts = Counter(name for name, _ in headers)
    for name in SINGLE_HEADERS & counts.keys():
        if counts[name] > 1:
            raise InvalidRequest("this header may be given once", param=name.decode().title())
    if b"content-length" in counts and b"transfer-encoding" in counts:
        raise InvalidRequest("Content-Length and Transfer-Encoding exclude each other")


def check_query(query: bytes) -> None:
    """Raises InvalidRequest, and InvalidUnicode for percent-encoded bytes that are no UTF-8."""
    if len(query) > MAX_QUERY_NUM_BYTES:
        raise InvalidRequest(f"the query is longer than {MAX_QUERY_NUM_BYTES} bytes")
    parts = [part for part in query.split(b"&") if part]
    if len(parts) > MAX_NUM_PARAMETERS:
        raise InvalidRequest(f"the query has more than {MAX_NUM_PARAMETERS} parameters")
    names = set()
    for part in parts:
        name, _, value = part.partition(b"=")
        if _BROKEN_ESCAPE.search(part):
            raise InvalidRequest("the query holds a % that is not followed by two digits")
        if _CONTROL.search(_text(name) + _text(value)):
            raise InvalidRequest("the query holds a control character", param=shown_name(_text(name)))
        # OpenAI's clients write the items of a list as `name[]`, one after the other.
        if _text(name) in names and not _text(name).endswith("[]"):
            raise InvalidRequest("this parameter may be given once", param=shown_name(_text(name)))
        names.add(_text(name))


def closed_query(request: Request) -> None:
    """For routes of our own, where an unknown parameter is a mistake: without it a document would be another one.

    Raises InvalidRequest.
    """
    known = {parameter.alias for parameter in request.scope["route"].dependant.query_params}
    for name in request.query_params:
        if name not in known:
            raise InvalidRequest("the query holds a parameter that this route does not have", param=shown_name(name))


def _plain_integer(value: Any) -> Any:
    """What else would be read as one: 1.0, 1_000, spaces, digits of other scripts."""
    if isinstance(value, str) and not _DIGITS.fullmatch(value):
        raise PydanticCustomError("plain_integer", "it must be a whole number, in digits")
    return value


PlainInteger = BeforeValidator(_plain_integer)


def _text(encoded: bytes) -> str:
    try:
        return unquote_to_bytes(encoded.replace(b"+", b" ")).decode()
    except UnicodeDecodeError as error:
        raise InvalidUnicode("the query is not UTF-8") from error

"""An answer as it comes over a connection, and what may be wrong with it."""

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any

# The promises of API.md: nothing that a client sends is a server error; a store at its quota is the one exception.
ALLOWED_SERVER_ERRORS = {503: ("draining", "loading"), 507: ("store_full",)}
ERROR_FIELDS = {"message", "type", "param", "code"}
MORE_ERROR_FIELDS = {"expected_offset", "last_whole_version"}
MAX_LINE_NUM_BYTES = 2**26
NO_BODY = (204, 304)
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*")


class GarbledError(Exception):
    """What came is no HTTP."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0]

    @property
    def value(self) -> Any:
        """The body's JSON value; None for what is none."""
        return json.loads(self.body) if self.media_type == "application/json" and self.body else None


async def read_answer(reader: asyncio.StreamReader, has_body: bool = True) -> Answer | None:
    """The next answer that is none of the 1xx; None when the connection ends instead. Raises GarbledError."""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise GarbledError(repr(error.partial[:200])) from error
            return None
        first, *lines = head[:-4].split(b"\r\n")
        status = _STATUS.fullmatch(first)
        if status is None:
            raise GarbledError(repr(head[:200]))
        headers = {name.lower().decode(): value.strip().decode("latin-1") for name, _, value in map(_parted, lines)}
        if int(status[1]) >= 200:
            break
    body = await _read_body(reader, headers) if has_body and int(status[1]) not in NO_BODY else b""
    return Answer(int(status[1]), headers, body)


def complaint(answer: Answer, is_whole: bool) -> str | None:
    """What is wrong with an answer; None when nothing is. is_whole: to a request that every server can read."""
    if b"Traceback (most recent call last)" in answer.body:
        return "a traceback"
    if not is_whole and answer.media_type == "text/plain" and answer.status == 400:
        # Before there was a request, the server of the framework answers.
        return None
    if answer.status >= 500 and _code(answer) not in ALLOWED_SERVER_ERRORS.get(answer.status, ()):
        return f"status {answer.status}"
    if "x-request-id" not in answer.headers:
        return "no request id"
    if answer.media_type == "text/event-stream":
        return _complaint_about_events(answer.body)
    if answer.status >= 400 and answer.body and not _is_error(answer.value):
        return f"status {answer.status} in another shape"
    return None


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    try:
        if "content-length" in headers:
            return await reader.readexactly(int(headers["content-length"]))
        if headers.get("transfer-encoding") != "chunked":
            return await reader.read()
        body = b""
        while num_bytes := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(num_bytes + 2))[:-2]
        await reader.readuntil(b"\r\n")
        return body
    except asyncio.IncompleteReadError as error:
        raise GarbledError("the body broke off") from error


def _parted(line: bytes) -> tuple[bytes, bytes, bytes]:
    return line.partition(b":")


def _code(answer: Answer) -> Any:
    value = answer.value
    return value["error"]["code"] if _is_error(value) else None


def _is_error(value: Any) -> bool:
    error = value.get("error") if isinstance(value, dict) else None
    return isinstance(error, dict) and ERROR_FIELDS <= set(error) <= ERROR_FIELDS | MORE_ERROR_FIELDS


def _complaint_about_events(body: bytes) -> str | None:
    *events, rest = body.split(b"\n\n")
    if rest:
        return "a stream that breaks off in an event"
    for event in events:
        for line in event.split(b"\n"):
            name, _, value = line.partition(b": ")
            if name == b"data" and value != b"[DONE]":
                code = _code(Answer(200, {"content-type": "application/json"}, value))
                if code == "internal_error":
                    return "a server error in a stream"
    return None

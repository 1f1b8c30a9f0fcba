"""Lines of the log, each a JSON object (`json`) or for people (`text`). What clients say is in neither.

A record's own fields are given as `extra={"fields": {...}}`. A traceback has the frames of the code, and an exception's
message only where that cannot quote a value: those of ValueError or KeyError may be somebody's text.
"""

import json
import logging
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from engine.errors import AtlasError


class LogFormat(StrEnum):
    JSON = "json"
    TEXT = "text"


class JsonFormatter(logging.Formatter):
    """ASCII, one line whatever is in it."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if failure := _traceback(record):
            line["traceback"] = failure
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """Fields are JSON behind the message; a traceback has lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname} {record.name} {record.getMessage()}"
        if fields := _fields(record):
            line += f" {json.dumps(fields)}"
        return "\n".join([line, *filter(None, [_traceback(record)])])


FORMATTERS: Mapping[LogFormat, type[logging.Formatter]] = {
    LogFormat.JSON: JsonFormatter,
    LogFormat.TEXT: TextFormatter,
}


def configure_logging(log_format: LogFormat, level: str) -> None:
    """Everybody's lines, Python's warnings among them, go to standard error in this format."""
    handler = logging.StreamHandler()
    handler.setFormatter(FORMATTERS[log_format]())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)
    if level != "debug":
        logging.getLogger("uvicorn").setLevel(logging.WARNING)


def told_line(level: int, message: str, fields: Mapping[str, Any] | None = None) -> str:
    """A JSON line of the server's own, for what is told at every level."""
    record = {"name": "server", "levelno": level, "levelname": logging.getLevelName(level), "msg": message}
    return JsonFormatter().format(logging.makeLogRecord({**record, "fields": fields or {}}))


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return fields


def _traceback(record: logging.LogRecord) -> str:
    error = record.exc_info[1] if record.exc_info else None
    return "" if error is None else "".join(_told(error)).rstrip("\n")


def _told(error: BaseException) -> Iterator[str]:
    """The error after those that led to it, as Python tells them, without what may quote a value."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield from _told(cause)
        yield "which led to\n"
    yield from traceback.format_tb(error.__traceback__)
    message = _message(error)
    yield f"{type(error).__module__}.{type(error).__qualname__}{message and f': {message}'}\n"
    for each in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield from _told(each)


def _message(error: BaseException) -> str:
    if isinstance(error, AtlasError):
        return error.message
    if isinstance(error, OSError):
        return error.strerror or ""
    # Of torch and of the interpreter: shapes, devices and memory.
    return str(error) if isinstance(error, RuntimeError | MemoryError) else ""

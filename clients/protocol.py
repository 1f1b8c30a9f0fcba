"""The wire, without a wire: requests as values, answers as values, and the parser of event streams.

A `Call` is a request together with the function that reads its answer, so that the two clients share everything except
how bytes are moved. Nothing here opens a connection, sleeps, or reads the environment.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

from clients.errors import ApiError, ProtocolError
from clients.messages import ChatAnswer, ChatDelta, SessionInfo, SessionMemory, SessionPage, as_object, required

Message = Mapping[str, str]
Messages = Sequence[Message]
T = TypeVar("T")

DONE = "[DONE]"
EVENT_STREAM = "text/event-stream"


class ChatOptions(TypedDict, total=False):
    """What a turn may say beside its messages; API.md names every field. Absent ones are left to the server."""

    session_id: str
    read_only: bool
    history: Literal["auto", "new", "match"]
    on_divergence: Literal["error", "rewind"]
    model: str
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: str | list[str]
    ignore_eos: bool
    if_match: int
    idempotency_key: str


@dataclass(frozen=True, slots=True)
class Request:
    """`json` is the body; a request without one may be given a streamed body by whoever sends it."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: object = None


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request whose answer is one JSON document, and how to read it."""

    request: Request
    parse: Callable[[object], T]


def connection_settings(base_url: str, api_key: str | None) -> tuple[str, dict[str, str]]:
    """The address without a trailing `/v1` (both spellings are common), and the headers of every request."""
    address = base_url.rstrip("/").removesuffix("/v1")
    return address, {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def chat_request(messages: Messages | str, options: ChatOptions, *, stream: bool) -> Request:
    """One turn. A string is the user's only message."""
    body: dict[str, object] = {**options}
    headers: dict[str, str] = {}
    if "if_match" in options:
        headers["If-Match"] = f'"{body.pop("if_match")}"'
    if "idempotency_key" in options:
        headers["Idempotency-Key"] = str(body.pop("idempotency_key"))
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    body["messages"] = [dict(message) for message in messages]
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Request("POST", "/v1/chat/completions", headers=headers, json=body)


def chat(messages: Messages | str, options: ChatOptions) -> Call[ChatAnswer]:
    return Call(chat_request(messages, options, stream=False), ChatAnswer.parse)


def session_path(session_id: str, *below: str) -> str:
    return "/".join(("/v1/sessions", quote(session_id, safe=""), *(quote(part, safe="") for part in below)))


def get_session(session_id: str) -> Call[SessionInfo]:
    return Call(Request("GET", session_path(session_id)), SessionInfo.parse)


def get_memory(session_id: str) -> Call[SessionMemory]:
    return Call(Request("GET", session_path(session_id, "memory")), SessionMemory.parse)


def list_sessions(limit: int, after: str | None) -> Call[SessionPage]:
    params = {"limit": str(limit)} | ({} if after is None else {"after": after})
    return Call(Request("GET", "/v1/sessions", params=params), SessionPage.parse)


def delete_session(session_id: str) -> Call[None]:
    return Call(Request("DELETE", session_path(session_id)), lambda body: None)


def tokenize(text: str) -> Call[list[int]]:
    def parse(body: object) -> list[int]:
        return [int(token_id) for token_id in required(as_object(body, "answer"), "tokens", list, "answer")]

    return Call(Request("POST", "/tokenize", json={"text": text}), parse)


def list_models() -> Call[list[str]]:
    def parse(body: object) -> list[str]:
        data = required(as_object(body, "list of models"), "data", list, "list of models")
        return [required(as_object(item, "model"), "id", str, "model") for item in data]

    return Call(Request("GET", "/v1/models"), parse)


def ingest_request(session_id: str, document_id: str, offset: int) -> Request:
    """The document's bytes from `offset` on are the body; the answer is a stream of progress events."""
    return Request(
        "POST",
        session_path(session_id, "ingest"),
        params={"offset": str(offset), "document_id": document_id},
        headers={
            "Content-Type": "text/plain; charset=utf-8",
            "Accept": EVENT_STREAM,
            "Idempotency-Key": document_id,
        },
    )


def parse_json(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError as error:
        raise ProtocolError("the answer is not JSON") from error


def parse_error(value: object, status: int | None, retry_after: str | None = None) -> ApiError:
    """The error object of a refused request or of an event."""
    error = as_object(as_object(value, "error answer").get("error"), "error answer")
    expected_offset = error.get("expected_offset")
    try:
        retry_after_seconds = None if retry_after is None else float(retry_after)
    except ValueError:
        retry_after_seconds = None
    return ApiError(
        str(error.get("message", "")),
        code=str(error.get("code") or error.get("type") or "unknown"),
        status=status,
        param=error.get("param"),
        retry_after_seconds=retry_after_seconds,
        expected_offset=expected_offset if isinstance(expected_offset, int) else None,
    )


def parse_refusal(status: int, body: bytes, retry_after: str | None) -> ApiError:
    """An answer with a status of 400 and more; a body that is not ours (a proxy's page) is described by its status."""
    try:
        return parse_error(parse_json(body), status, retry_after)
    except ProtocolError:
        return ApiError(f"the server answered with status {status}", code=f"http_{status}", status=status)


def parse_event(data: str) -> object:
    """The JSON of one event. Raises the ApiError that an error event carries."""
    try:
        value: object = json.loads(data)
    except ValueError as error:
        raise ProtocolError("an event is not JSON") from error
    if isinstance(value, dict) and value.get("error") is not None:
        raise parse_error(value, None)
    return value


def parse_chat_event(data: str) -> ChatDelta:
    return ChatDelta.parse(parse_event(data))


class EventParser:
    """Server-sent events from bytes cut anywhere: `push` returns the data of the events that became whole.

    Comments and fields other than `data` are skipped; lines may end in LF, CR LF or CR.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def push(self, piece: bytes) -> list[str]:
        buffered = self._rest + piece
        held = b""
        if buffered.endswith(b"\r"):
            buffered, held = buffered[:-1], b"\r"
        lines = buffered.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + held
        events = []
        for line in lines:
            if not line:
                if self._data:
                    events.append("\n".join(self._data))
                self._data = []
            elif line.startswith(b"data:"):
                self._data.append(_decode(line[len(b"data:") :].removeprefix(b" ")))
        return events


def _decode(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError("an event is not UTF-8") from error

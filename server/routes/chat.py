"""POST /v1/chat/completions. Every refusal that can be known from the request happens here, before a byte is sent."""

import hashlib
import logging
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine.errors import AtlasError, InvalidRequest, ModelNotFound
from engine.sessions import History, TurnRequest
from server.answering import AnswerEvent, Completed, Said, answer
from server.bodies import off_loop_if_large, read_json_body
from server.chat_answer import ChatAnswer
from server.dependencies import idempotency_key, if_match, is_library_retry, named_session, runtime_of
from server.disconnect import run_until_disconnect
from server.errors import code_of, error_body, status_of
from server.middleware import RequestContext
from server.parameters import review_chat_fields
from server.runtime import Runtime
from server.schemas import ChatRequest, request_body, validate
from server.streaming import DONE, EventStream, EventTemplate, event
from server.strict_json import parse_object

MAX_NUM_IGNORED_SHOWN = 32

router = APIRouter()
_logger = logging.getLogger(__name__)


@router.post("/v1/chat/completions", openapi_extra=request_body(ChatRequest))
async def create_chat_completion(request: Request) -> Response:
    """A turn of a session, or a stateless one. SSE with `stream`."""
    runtime = runtime_of(request)
    config = runtime.config
    raw = await read_json_body(request, config.max_body_bytes, config.body_timeout_seconds)
    chat, ignored, turn = await off_loop_if_large(len(raw), lambda: _understand(request, runtime, raw))
    serving = runtime.serving()
    context = RequestContext.of(request)
    context.note.update(turn.note)
    if chat.model not in (None, serving.checkpoint.name):
        raise ModelNotFound("the model does not exist; GET /v1/models names the one that is served")

    headers: dict[str, str] = {}
    if turn.session is not None:
        headers["X-Session-Id"] = turn.session.session_id
    if ignored:
        headers["X-Ignored-Parameters"] = ", ".join(ignored[:MAX_NUM_IGNORED_SHOWN])
    frame = ChatAnswer(serving.checkpoint.name)
    events = answer(serving.sessions, turn, frame, runtime.metrics, context.started)
    reply = _Reply(runtime, headers, frame, events)
    if chat.stream:
        return await run_until_disconnect(request.receive, reply.stream(chat.includes_usage))
    return await run_until_disconnect(request.receive, reply.whole())


class _Reply:
    """How the events of an answer travel."""

    def __init__(
        self,
        runtime: Runtime,
        headers: dict[str, str],
        frame: ChatAnswer,
        events: AsyncGenerator[AnswerEvent, None],
    ) -> None:
        self._runtime = runtime
        self._headers = headers
        self._frame = frame
        self._events = events

    async def whole(self) -> Response:
        async with aclosing(self._events):
            async for item in self._events:
                if isinstance(item, Completed):
                    self._note(item)
                    if "session" in item.completion:
                        self._headers["X-Session-Version"] = str(item.completion["session"]["version"])
                    return JSONResponse(item.completion, headers=self._headers)
        raise AssertionError("an answer ends with Completed")

    async def stream(self, includes_usage: bool) -> Response:
        """Returns when there is something to say: until then a refusal still has a status of its own."""
        chunks = self._chunks(includes_usage)
        first = await anext(chunks)
        stall_seconds = self._runtime.config.body_timeout_seconds
        return EventStream(first, chunks, self._headers, stall_seconds=stall_seconds)

    async def _chunks(self, includes_usage: bool) -> AsyncGenerator[bytes, None]:
        """Raises what comes before the first chunk, and tells in a chunk what comes after it."""
        said = _TextEvents(self._frame)
        async with aclosing(self._events):
            try:
                while not isinstance(item := await anext(self._events), Completed):
                    if isinstance(item, Said):
                        yield said.event(item.choice, item.text)
                    elif "X-Session-Id" in self._headers:
                        self._headers["X-Session-Version"] = str(item.base_version)
            except Exception as error:
                if not said.choices:
                    raise
                # Boundary: the status has been sent, so whatever failed is told inside the stream.
                if not isinstance(error, AtlasError):
                    _logger.exception("a stream failed")
                self._runtime.metrics.refused(status_of(error), code_of(error))
                yield event(error_body(error))
                return
            self._note(item)
            completion = item.completion
            choices = completion["choices"]
            frame = ChatAnswer.of_completion(completion) if item.is_replay else self._frame
            if item.is_replay:
                said = _TextEvents(frame)
                for choice in choices:
                    yield said.event(choice["index"], choice["message"]["content"])
            for choice in choices:
                index = choice["index"]
                yield event(frame.finish_chunk(completion, index, is_first=index not in said.choices))
            if includes_usage:
                yield event(frame.usage_chunk(completion))
            yield DONE

    def _note(self, completed: Completed) -> None:
        if completed.is_replay:
            self._headers["Idempotent-Replayed"] = "true"


class _TextEvents:
    """The events of an answer that carry text: a choice's first says the role, of the others only the text is new."""

    def __init__(self, frame: ChatAnswer) -> None:
        self._frame = frame
        self._templates: dict[int, EventTemplate] = {}

    @property
    def choices(self) -> Collection[int]:
        """Those that have said something."""
        return self._templates.keys()

    def event(self, choice: int, text: str) -> bytes:
        template = self._templates.get(choice)
        if template is not None:
            return template.filled(text)
        blank = self._frame.text_chunk(choice, EventTemplate.BLANK, is_first=False)
        self._templates[choice] = EventTemplate(blank)
        return event(self._frame.text_chunk(choice, text, is_first=True))


def _understand(request: Request, runtime: Runtime, raw: bytes) -> tuple[ChatRequest, list[str], TurnRequest]:
    """The body, the names in it that are ignored, and what it asks for."""
    body = parse_object(raw)
    ignored = review_chat_fields(body)
    chat = validate(ChatRequest, body)
    return chat, ignored, _turn_request(request, runtime, chat)


def _turn_request(request: Request, runtime: Runtime, chat: ChatRequest) -> TurnRequest:
    num_choices = chat.n or 1
    if num_choices > runtime.config.max_num_sequences + runtime.config.max_num_waiting:
        raise InvalidRequest("n is more than this server runs and queues", param="n")
    session = named_session(request, chat.session_id)
    version = if_match(request)
    if session is None:
        for name, is_asked in (
            ("read_only", bool(chat.read_only)),
            ("history", chat.to_history() is History.MATCH),
            ("on_divergence", chat.on_divergence == "rewind"),
            ("If-Match", version is not None),
        ):
            if is_asked:
                raise InvalidRequest(f"{name} needs a session", param=name)
    return TurnRequest(
        messages=chat.to_messages(),
        sampling=chat.to_sampling(runtime.config.max_tokens_limit),
        digest=hashlib.sha256(chat.digest_source()).hexdigest(),
        session=session,
        history=chat.to_history(),
        may_rewind=chat.on_divergence == "rewind",
        read_only=bool(chat.read_only),
        if_match=version,
        idempotency_key=idempotency_key(request),
        is_retry=is_library_retry(request),
        note={name: value for name in ("user", "metadata") if (value := getattr(chat, name)) is not None},
        num_choices=num_choices,
        tenant=RequestContext.of(request).tenant,
    )

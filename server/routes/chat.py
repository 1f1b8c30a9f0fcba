"""POST /v1/chat/completions. Every refusal that can be known from the request happens here, before a byte is sent."""

import hashlib
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine.errors import AtlasError, InvalidRequest, ModelNotFound, UnsupportedParameter
from engine.sessions import History, TurnRequest
from server.answering import AnswerEvent, Completed, Opened, answer
from server.bodies import read_json
from server.chat_answer import ChatAnswer
from server.dependencies import idempotency_key, if_match, is_library_retry, named_session, runtime_of
from server.disconnect import run_until_disconnect
from server.errors import code_of, error_body, status_of
from server.middleware import RequestContext
from server.parameters import review_chat_fields
from server.runtime import Runtime
from server.schemas import ChatRequest, request_body, validate
from server.streaming import DONE, EventStream, event

MAX_NUM_IGNORED_SHOWN = 32

router = APIRouter()
_logger = logging.getLogger(__name__)


@router.post("/v1/chat/completions", openapi_extra=request_body(ChatRequest))
async def create_chat_completion(request: Request) -> Response:
    """A turn of a session, or a stateless one. SSE with `stream`."""
    runtime = runtime_of(request)
    config = runtime.config
    body = await read_json(request, config.max_body_bytes, config.body_timeout_seconds)
    ignored = review_chat_fields(body)
    chat = validate(ChatRequest, body)
    turn = _turn_request(request, runtime, chat)
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


@dataclass(frozen=True, slots=True)
class _Reply:
    """How the events of an answer travel."""

    runtime: Runtime
    headers: dict[str, str]
    frame: ChatAnswer
    events: AsyncGenerator[AnswerEvent, None]

    async def whole(self) -> Response:
        async with aclosing(self.events):
            async for item in self.events:
                if isinstance(item, Completed):
                    return JSONResponse(item.completion, headers=self._headers(item.completion, item.is_replay))
        raise AssertionError("an answer ends with Completed")

    async def stream(self, includes_usage: bool) -> Response:
        """Returns when there is something to say: until then a refusal still has a status of its own."""
        version = 0
        try:
            while isinstance(item := await anext(self.events), Opened):
                version = item.base_version
        except BaseException:
            await self.events.aclose()
            raise
        is_replay = isinstance(item, Completed) and item.is_replay
        headers = self._headers(None, is_replay)
        if "X-Session-Id" in headers:
            headers["X-Session-Version"] = str(version)
        return EventStream(
            self._chunks(item, includes_usage), headers, stall_seconds=self.runtime.config.body_timeout_seconds
        )

    async def _chunks(self, first: AnswerEvent, includes_usage: bool) -> AsyncGenerator[bytes, None]:
        item, frame, is_first = first, self.frame, True
        async with aclosing(self.events):
            try:
                while not isinstance(item, Completed):
                    if isinstance(item, str):
                        yield event(frame.text_chunk(item, is_first=is_first))
                        is_first = False
                    item = await anext(self.events)
            except Exception as error:
                # Boundary: the status has been sent, so whatever failed is told inside the stream.
                if not isinstance(error, AtlasError):
                    _logger.exception("a stream failed")
                self.runtime.metrics.refused(status_of(error), code_of(error))
                yield event(error_body(error))
                return
            completion = item.completion
            if item.is_replay:
                frame = ChatAnswer.of_completion(completion)
                yield event(frame.text_chunk(completion["choices"][0]["message"]["content"], is_first=True))
                is_first = False
            yield event(frame.finish_chunk(completion, is_first=is_first))
            if includes_usage:
                yield event(frame.usage_chunk(completion))
            yield DONE

    def _headers(self, completion: Mapping[str, Any] | None, is_replay: bool) -> dict[str, str]:
        headers = dict(self.headers)
        if completion is not None and "session" in completion:
            headers["X-Session-Version"] = str(completion["session"]["version"])
        if is_replay:
            headers["Idempotent-Replayed"] = "true"
        return headers


def _turn_request(request: Request, runtime: Runtime, chat: ChatRequest) -> TurnRequest:
    if chat.on_divergence == "rewind":
        raise UnsupportedParameter("on_divergence: rewind is not supported", param="on_divergence")
    session = named_session(request, chat.session_id)
    version = if_match(request)
    if session is None:
        for name, is_asked in (
            ("read_only", bool(chat.read_only)),
            ("history", chat.to_history() is History.MATCH),
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
        read_only=bool(chat.read_only),
        if_match=version,
        idempotency_key=idempotency_key(request),
        is_retry=is_library_retry(request),
        note={name: value for name in ("user", "metadata") if (value := getattr(chat, name)) is not None},
    )

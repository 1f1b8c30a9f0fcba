"""How the events of an answer travel: as one body, or as a stream of events, in the words of its frame."""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine.errors import AtlasError
from engine.sessions import ReadPrompt
from server.answers.answering import AnswerEvent, Completed, Opened, answer
from server.answers.asking import Asked
from server.connections.disconnect import run_until_disconnect
from server.connections.keep_alive import begin
from server.connections.streaming import EventStream
from server.dependencies import runtime_of
from server.frames.frame import TELLING_NUM_BYTES, Frame, Said
from server.input.bodies import off_loop_if_large
from server.middleware import RequestContext, refused
from server.runtime import Runtime

MAX_NUM_IGNORED_SHOWN = 32

_logger = logging.getLogger(__name__)


async def reply(request: Request, asked: Asked) -> Response:
    """Runs the turn. Ends it when the client goes away."""
    runtime = runtime_of(request)
    headers: dict[str, str] = {}
    # A branch is named when it is known to be one.
    if asked.turn.session is not None and asked.turn.branch is None:
        headers["X-Session-Id"] = asked.turn.session.session_id
    if asked.ignored:
        headers["X-Ignored-Parameters"] = ", ".join(asked.ignored[:MAX_NUM_IGNORED_SHOWN])
    context = RequestContext.of(request)
    context.note["stream"] = asked.streams
    events = answer(runtime.serving().sessions, asked.turn, asked.frame, runtime.metrics, context)
    travelling = _Reply(runtime, context, headers, asked.frame, events)
    return await run_until_disconnect(request.receive, travelling.stream() if asked.streams else travelling.whole())


class _Reply:
    def __init__(
        self,
        runtime: Runtime,
        context: RequestContext,
        headers: dict[str, str],
        frame: Frame,
        events: AsyncGenerator[AnswerEvent, None],
    ) -> None:
        self._runtime = runtime
        self._context = context
        self._headers = headers
        self._frame = frame
        self._events = events
        self._has_begun = False

    async def whole(self) -> Response:
        async with aclosing(self._events):
            async for item in self._events:
                if isinstance(item, Opened):
                    self._opened(item)
                elif isinstance(item, Completed):
                    return await self._completed(item)
        raise AssertionError("an answer ends with Completed")

    async def stream(self) -> Response:
        """Returns when there is something to say, or a comment is due: until then a refusal has a status of its own."""
        config = self._runtime.config
        first, rest = await begin(self._pieces(), config.stream_keepalive_seconds)
        self._has_begun = True
        return EventStream(first, rest, self._headers, keep_alive_seconds=config.stream_keepalive_seconds)

    async def _pieces(self) -> AsyncGenerator[bytes, None]:
        """Raises what comes before the stream has begun, and tells in a piece what comes after that."""
        frame = self._frame
        async with aclosing(self._events):
            try:
                while not isinstance(item := await anext(self._events), Completed):
                    if isinstance(item, Said):
                        yield frame.said(item) if item.prompt is None else await self._echoed(item, item.prompt)
                    else:
                        self._opened(item)
            except Exception as error:
                if not self._has_begun:
                    raise
                # Boundary: the status has been sent, so whatever failed is told inside the stream.
                if not isinstance(error, AtlasError):
                    _logger.exception("a stream failed")
                refused(self._runtime.metrics, self._context, error)
                yield frame.failed(error)
                return
            self._note(item)
            for piece in frame.replayed(item.body) if item.is_replay else frame.ended(item.body):
                yield piece

    async def _completed(self, completed: Completed) -> Response:
        self._note(completed)
        body = completed.body
        if "session" in body:
            self._headers["X-Session-Version"] = str(body["session"]["version"])
        num_bytes = completed.num_told * TELLING_NUM_BYTES
        return await off_loop_if_large(num_bytes, lambda: JSONResponse(body, headers=self._headers))

    async def _echoed(self, said: Said, prompt: ReadPrompt) -> bytes:
        """A prompt may be long."""
        return await off_loop_if_large(len(prompt.logprobs) * TELLING_NUM_BYTES, lambda: self._frame.said(said))

    def _opened(self, opened: Opened) -> None:
        if opened.session_id is not None:
            self._headers["X-Session-Id"] = opened.session_id
        if "X-Session-Id" in self._headers:
            self._headers["X-Session-Version"] = str(opened.base_version)

    def _note(self, completed: Completed) -> None:
        if completed.is_replay:
            self._headers["Idempotent-Replayed"] = "true"

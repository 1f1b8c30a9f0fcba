"""POST /v1/chat/completions."""

from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from engine.sessions import History
from server.answers.asking import Asked, read_asked, require_no_session, turn_request
from server.answers.replying import reply
from server.frames.chat import ChatFrame
from server.frames.logprobs import TokenNames
from server.parameters import CHAT, review_messages
from server.runtime import Serving
from server.schemas import ChatRequest, request_body, validate

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra=request_body(ChatRequest))
async def create_chat_completion(request: Request) -> Response:
    """A turn of a session, or a stateless one. SSE with `stream`."""
    return await reply(request, await read_asked(request, _understand))


def _understand(request: Request, serving: Serving, body: dict[str, Any]) -> Asked:
    ignored = CHAT.review(body)
    review_messages(body.get("messages"))
    chat = validate(ChatRequest, body)
    turn = replace(
        turn_request(request, serving, chat),
        messages=chat.to_messages(),
        history=chat.to_history(),
        may_rewind=chat.on_divergence == "rewind",
    )
    if turn.session is None:
        require_no_session("history", turn.history is History.MATCH)
        require_no_session("on_divergence", turn.may_rewind)
    names = TokenNames(serving.checkpoint.tokenizer) if chat.logprobs else None
    frame = ChatFrame(
        serving.checkpoint.name,
        includes_usage=chat.includes_usage,
        has_running_usage=chat.has_running_usage,
        names=names,
    )
    return Asked(turn, frame, bool(chat.stream), ignored)

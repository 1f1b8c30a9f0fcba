"""POST /v1/completions: a text is continued as it is, without the frames of a conversation."""

from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from atlas_model.text import Tokenizer
from engine.errors import InvalidRequest
from engine.sessions import Prompt
from server.answers.asking import Asked, read_asked, turn_request
from server.answers.replying import reply
from server.frames.completion import CompletionFrame
from server.frames.logprobs import TokenNames
from server.parameters import COMPLETION
from server.runtime import Serving
from server.schemas import CompletionRequest, request_body, validate

router = APIRouter()


@router.post("/v1/completions", openapi_extra=request_body(CompletionRequest))
async def create_completion(request: Request) -> Response:
    """One text or several are continued. In a session the text is learned as it is, and its continuation with it."""
    return await reply(request, await read_asked(request, _understand))


def _understand(request: Request, serving: Serving, body: dict[str, Any]) -> Asked:
    ignored = COMPLETION.review(body)
    asked = validate(CompletionRequest, body)
    tokenizer = serving.checkpoint.tokenizer
    _check_ids(asked.prompt, tokenizer.vocab_size)
    turn = replace(turn_request(request, serving, asked), prompts=asked.prompt)
    if turn.session is not None and len(turn.prompts) > 1:
        raise InvalidRequest("a session reads one prompt at a time", param="prompt")
    echoes: list[str] = []
    if asked.echo:
        texts = [_text(tokenizer, prompt) for prompt in asked.prompt]
        echoes = [text for text in texts for _ in range(turn.num_choices)]
    names = None if asked.logprobs is None else TokenNames(tokenizer)
    model = serving.checkpoint.name
    frame = CompletionFrame(
        model,
        includes_usage=asked.includes_usage,
        has_running_usage=asked.has_running_usage,
        echoes=echoes,
        names=names,
    )
    return Asked(turn, frame, bool(asked.stream), ignored)


def _check_ids(prompts: tuple[Prompt, ...], vocab_size: int) -> None:
    for prompt in prompts:
        if not isinstance(prompt, str) and not (min(prompt) >= 0 and max(prompt) < vocab_size):
            raise InvalidRequest("a token id is out of the vocabulary", param="prompt")


def _text(tokenizer: Tokenizer, prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)

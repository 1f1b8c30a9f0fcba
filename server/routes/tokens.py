"""Texts as tokens and tokens as texts: /tokenize and /detokenize, with the names of vLLM's clients beside ours."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from atlas_model.checkpoint import Checkpoint
from atlas_model.text import Tokenizer
from engine.errors import InvalidRequest
from engine.sessions import chat_token_ids, message_token_ids
from server.dependencies import runtime_of
from server.frames.logprobs import TokenNames
from server.input.bodies import read_json
from server.parameters import review_messages
from server.schemas import DetokenizeRequest, TokenizeRequest, request_body, validate

router = APIRouter()


@router.get("/tokenizer_info")
async def get_tokenizer_info(request: Request) -> Response:
    """What vLLM's clients ask before they count tokens here. Special tokens have ids and no text: in a text, what looks
    like one is a text."""
    tokenizer = runtime_of(request).serving().checkpoint.tokenizer
    special = tokenizer.special
    ids = {"bos_token_id": special.bos, "eos_token_id": special.end, "vocab_size": tokenizer.vocab_size}
    return JSONResponse({"bos_token": None, "eos_token": None, "chat_template": None, **ids})


@router.post("/tokenize", openapi_extra=request_body(TokenizeRequest))
async def tokenize(request: Request) -> Response:
    """The ids of a text as it is read in the middle of a session, of a prompt as it begins one, and of messages up to
    where the answer begins."""
    runtime = runtime_of(request)
    config = runtime.config
    asked = await read_json(request, config.max_body_bytes, config.body_timeout_seconds, _understand)
    runtime.serving().check_model_name(asked.model)
    return await asyncio.to_thread(_tokenized, runtime.serving().checkpoint, asked)


@router.post("/detokenize", openapi_extra=request_body(DetokenizeRequest))
async def detokenize(request: Request) -> Response:
    """The text of ids, under both names; bytes that are no UTF-8 become U+FFFD."""
    runtime = runtime_of(request)
    config, understand = runtime.config, partial(validate, DetokenizeRequest)
    asked = await read_json(request, config.max_body_bytes, config.body_timeout_seconds, understand)
    runtime.serving().check_model_name(asked.model)
    return await asyncio.to_thread(_detokenized, runtime.serving().checkpoint.tokenizer, asked.tokens)


def _understand(body: dict[str, Any]) -> TokenizeRequest:
    review_messages(body.get("messages"))
    return validate(TokenizeRequest, body)


def _tokenized(checkpoint: Checkpoint, asked: TokenizeRequest) -> Response:
    tokens = _token_ids(checkpoint, asked)
    answer: dict[str, Any] = {"tokens": tokens, "count": len(tokens), "max_model_len": None, "token_strs": None}
    if asked.return_token_strs:
        names = TokenNames(checkpoint.tokenizer)
        answer["token_strs"] = [names.name(token_id) for token_id in tokens]
    return JSONResponse(answer)


def _detokenized(tokenizer: Tokenizer, token_ids: Sequence[int]) -> Response:
    if not all(0 <= token_id < tokenizer.vocab_size for token_id in token_ids):
        raise InvalidRequest("a token id is out of the vocabulary", param="tokens")
    text = tokenizer.decode(token_ids)
    return JSONResponse({"text": text, "prompt": text})


def _token_ids(checkpoint: Checkpoint, asked: TokenizeRequest) -> list[int]:
    tokenizer, chat_format = checkpoint.tokenizer, checkpoint.chat_format
    if asked.messages is not None:
        in_ids = message_token_ids if asked.add_generation_prompt is False else chat_token_ids
        return in_ids(tokenizer, chat_format, [each.to_message() for each in asked.messages], is_first=True)
    start = chat_format.session_start(tokenizer) if asked.begins_session else []
    return start + tokenizer.encode(asked.raw_text)

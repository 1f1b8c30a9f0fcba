"""Which model is served, and its tokens."""

import asyncio
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from atlas_model.checkpoint import Checkpoint
from atlas_model.state import session_num_bytes
from engine.errors import InvalidRequest
from server.bodies import read_json
from server.dependencies import runtime_of
from server.schemas import DetokenizeRequest, TokenizeRequest, request_body, validate

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """The one model that is served. It has no `max_model_len`: the context has no end."""
    return JSONResponse({"object": "list", "data": [_described(runtime_of(request).serving().checkpoint)]})


@router.get("/v1/models/{model}")
async def get_model(request: Request, model: str) -> Response:
    """The same model by its name."""
    serving = runtime_of(request).serving()
    serving.check_model_name(model)
    return JSONResponse(_described(serving.checkpoint))


@router.get("/version")
async def get_version(request: Request) -> Response:
    """The program's version, and the fingerprint that snapshots must carry."""
    checkpoint = runtime_of(request).serving().checkpoint
    return JSONResponse(
        {"version": version("atlas-serve"), "model": checkpoint.name, "fingerprint": checkpoint.fingerprint}
    )


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
    """The ids of a text, as a session would read them."""
    runtime = runtime_of(request)
    body = await read_json(request, runtime.config.max_body_bytes, runtime.config.body_timeout_seconds)
    asked = validate(TokenizeRequest, body)
    runtime.serving().check_model_name(asked.model)
    checkpoint = runtime.serving().checkpoint
    tokens = await asyncio.to_thread(checkpoint.tokenizer.encode, asked.to_encode)
    if asked.add_special_tokens:
        tokens = checkpoint.chat_format.session_start(checkpoint.tokenizer) + tokens
    return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": None})


@router.post("/detokenize", openapi_extra=request_body(DetokenizeRequest))
async def detokenize(request: Request) -> Response:
    """The text of ids, under our name and under vLLM's; bytes that are no UTF-8 become U+FFFD."""
    runtime = runtime_of(request)
    body = await read_json(request, runtime.config.max_body_bytes, runtime.config.body_timeout_seconds)
    asked = validate(DetokenizeRequest, body)
    runtime.serving().check_model_name(asked.model)
    tokenizer = runtime.serving().checkpoint.tokenizer
    if not all(0 <= token_id < tokenizer.vocab_size for token_id in asked.tokens):
        raise InvalidRequest("a token id is out of the vocabulary", param="tokens")
    text = await asyncio.to_thread(tokenizer.decode, asked.tokens)
    return JSONResponse({"text": text, "prompt": text})


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "id": checkpoint.name,
        "object": "model",
        "created": 0,
        "owned_by": "atlas-serve",
        "root": checkpoint.name,
        "parent": None,
        "max_model_len": None,
        "num_parameters": checkpoint.model.num_parameters,
        "session_bytes": session_num_bytes(checkpoint.model.config),
    }

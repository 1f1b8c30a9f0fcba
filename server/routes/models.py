"""Which model is served, and its tokens."""

import asyncio
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from atlas_model.checkpoint import Checkpoint
from atlas_model.state import session_num_bytes
from engine.errors import InvalidRequest, ModelNotFound
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
    checkpoint = runtime_of(request).serving().checkpoint
    if model != checkpoint.name:
        raise ModelNotFound("the model does not exist; GET /v1/models names the one that is served")
    return JSONResponse(_described(checkpoint))


@router.get("/version")
async def get_version(request: Request) -> Response:
    """The program's version, and the fingerprint that snapshots must carry."""
    checkpoint = runtime_of(request).serving().checkpoint
    return JSONResponse(
        {"version": version("atlas-serve"), "model": checkpoint.name, "fingerprint": checkpoint.fingerprint}
    )


@router.post("/tokenize", openapi_extra=request_body(TokenizeRequest))
async def tokenize(request: Request) -> Response:
    """The ids of a text, as a session would read them."""
    runtime = runtime_of(request)
    body = await read_json(request, runtime.config.max_body_bytes, runtime.config.body_timeout_seconds)
    text = validate(TokenizeRequest, body).text
    tokens = await asyncio.to_thread(runtime.serving().checkpoint.tokenizer.encode, text)
    return JSONResponse({"tokens": tokens, "count": len(tokens)})


@router.post("/detokenize", openapi_extra=request_body(DetokenizeRequest))
async def detokenize(request: Request) -> Response:
    """The text of ids; bytes that are no UTF-8 become U+FFFD."""
    runtime = runtime_of(request)
    body = await read_json(request, runtime.config.max_body_bytes, runtime.config.body_timeout_seconds)
    tokens = validate(DetokenizeRequest, body).tokens
    tokenizer = runtime.serving().checkpoint.tokenizer
    if not all(0 <= token_id < tokenizer.vocab_size for token_id in tokens):
        raise InvalidRequest("a token id is out of the vocabulary", param="tokens")
    return JSONResponse({"text": await asyncio.to_thread(tokenizer.decode, tokens)})


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

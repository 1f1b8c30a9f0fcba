"""Which model is served, and its tokens."""

import asyncio
from importlib.metadata import version

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from atlas_model.state import session_num_bytes
from engine.errors import InvalidRequest
from server.bodies import read_json
from server.dependencies import runtime_of
from server.schemas import DetokenizeRequest, TokenizeRequest, request_body, validate

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """The one model that is served. It has no `max_model_len`: the context has no end."""
    checkpoint = runtime_of(request).serving().checkpoint
    model = {
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
    return JSONResponse({"object": "list", "data": [model]})


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

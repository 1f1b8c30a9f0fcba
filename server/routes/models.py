"""Which model is served."""

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from atlas_model.checkpoint import Checkpoint
from atlas_model.state import session_num_bytes
from server.dependencies import runtime_of

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

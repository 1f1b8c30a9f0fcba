"""Whether the server lives, whether it should get requests, and what it has counted. Load balancers may ask by HEAD."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.dependencies import runtime_of
from server.metrics import EXPOSITION_TYPE

router = APIRouter()


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health(request: Request) -> Response:
    """Alive. Never touches the store."""
    runtime_of(request).check_alive()
    return JSONResponse({"status": "ok"})


@router.head("/ready", include_in_schema=False)
@router.get("/ready")
async def ready(request: Request) -> Response:
    """503 while loading, while draining, and without the store."""
    await runtime_of(request).check_ready()
    return JSONResponse({"status": "ready"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """What the server counts, in the text that Prometheus reads."""
    return Response(runtime_of(request).metrics.exposition(), headers={"Content-Type": EXPOSITION_TYPE})

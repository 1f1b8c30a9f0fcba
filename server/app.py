"""The application: routes, errors in one shape, the outermost ring, and the runtime's life. No module-level app."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from engine.errors import AtlasError, InvalidRequest
from server.access.cors import Cors
from server.errors import error_response, of_framework
from server.middleware import Edge, RequestContext, refused
from server.openapi import complete_openapi
from server.routes import (
    beginnings,
    chat,
    completions,
    conversations,
    health,
    models,
    replay,
    responses,
    sessions,
    tokens,
    versions,
)
from server.runtime import Runtime


def create_app(runtime: Runtime) -> FastAPI:
    """`runtime` is started and stopped with the application."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await runtime.start()
        try:
            yield
        finally:
            await runtime.stop()

    app = FastAPI(title="Atlas Serve", version=version("atlas-serve"), lifespan=lifespan, redirect_slashes=False)
    app.state.runtime = runtime
    app.add_middleware(Edge, key_ring=runtime.key_ring, rate_limiter=runtime.rate_limiter, metrics=runtime.metrics)
    if runtime.config.allowed_origins:
        app.add_middleware(Cors, origins=runtime.config.allowed_origins)
    for routes in (
        chat,
        completions,
        responses,
        conversations,
        beginnings,
        sessions,
        versions,
        replay,
        models,
        tokens,
        health,
    ):
        app.include_router(routes.router)
    _add_error_handlers(app, runtime)
    complete_openapi(app)
    return app


def _methods_of(request: Request) -> list[str]:
    """Those of the path, which several routes share; the framework itself names one route's. A path that is written out
    comes before one with a name in it."""
    routes = [
        each for each in iter_route_contexts(request.app.routes) if each.matches(request.scope)[0] is not Match.NONE
    ]
    path = min((str(route.path) for route in routes), key=lambda path: path.count("{"))
    return sorted({method for route in routes if route.path == path for method in route.methods or ()})


def _add_error_handlers(app: FastAPI, runtime: Runtime) -> None:
    def refuse(request: Request, error: Exception) -> Response:
        refused(runtime.metrics, RequestContext.of(request), error)
        return error_response(error)

    async def on_ours(request: Request, error: Exception) -> Response:
        return refuse(request, error)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = refuse(request, of_framework(error))
        response.status_code = error.status_code
        response.headers.update(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            response.headers["Allow"] = ", ".join(_methods_of(request))
        return response

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        param = str(first["loc"][-1])
        return refuse(request, InvalidRequest(f"{param}: {first['msg']}", param=param))

    app.add_exception_handler(AtlasError, on_ours)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)

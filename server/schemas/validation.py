"""From a parsed body to its model, and from the models to the OpenAPI document."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema

from engine.errors import InvalidRequest
from server.names import shown_name
from server.schemas.base import Body
from server.schemas.chat import ChatMessage, ChatRequest, TextPart
from server.schemas.completion import CompletionRequest
from server.schemas.conversations import (
    CreateConversationRequest,
    CreateItemsRequest,
    UpdateConversationRequest,
)
from server.schemas.generation import StreamOptions
from server.schemas.items import Item, ItemPart
from server.schemas.responses import ConversationReference, ResponseRequest, ResponseStreamOptions
from server.schemas.sessions import (
    CreateSessionRequest,
    ForkRequest,
    ForkSource,
    IngestTextRequest,
    NameVersionRequest,
    RewindRequest,
)
from server.schemas.tokens import DetokenizeRequest, TokenizeRequest

M = TypeVar("M", bound=Body)

_MODELS: tuple[type[Body], ...] = (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    ConversationReference,
    CreateConversationRequest,
    CreateItemsRequest,
    CreateSessionRequest,
    DetokenizeRequest,
    ForkRequest,
    ForkSource,
    IngestTextRequest,
    Item,
    ItemPart,
    NameVersionRequest,
    ResponseRequest,
    ResponseStreamOptions,
    RewindRequest,
    StreamOptions,
    TextPart,
    TokenizeRequest,
    UpdateConversationRequest,
)
_FIELDS = frozenset(field.alias or name for model in _MODELS for name, field in model.model_fields.items())


def validate(model: type[M], body: dict[str, Any]) -> M:
    """Raises InvalidRequest naming the field; the input is not echoed."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "extra_forbidden":
            name = shown_name(str(first["loc"][-1]))
            raise InvalidRequest(f"{name or 'a name'} is no field of this request", param=name) from error
        param = _param(first["loc"])
        raise InvalidRequest(f"{param}: {first['msg']}" if param else first["msg"], param=param) from error


def request_body(model: type[BaseModel], *, is_required: bool = True) -> dict[str, Any]:
    """What a route that reads its body itself adds to its OpenAPI operation."""
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    return {"requestBody": {"required": is_required, "content": content}}


def octets_body() -> dict[str, Any]:
    """The same for a body that is bytes."""
    content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {"requestBody": {"required": True, "content": content}}


def document_body(model: type[BaseModel]) -> dict[str, Any]:
    """The same for a document: text, the file of a form, or the model as JSON."""
    file = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
    body = request_body(model)
    body["requestBody"]["content"] |= {
        "text/plain": {"schema": {"type": "string", "minLength": 1}},
        "multipart/form-data": {"schema": file},
    }
    return body


def component_schemas() -> dict[str, Any]:
    """The OpenAPI components that `request_body` refers to."""
    _, schemas = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
    )
    components: dict[str, Any] = schemas["$defs"]
    return components


def _param(location: tuple[int | str, ...]) -> str | None:
    """`messages[0].content`, as far as the path goes along names that are ours."""
    param = ""
    for part in location:
        if isinstance(part, int):
            param += f"[{part}]"
        elif part in _FIELDS:
            param += f".{part}" if param else part
        else:
            break
    return param or None

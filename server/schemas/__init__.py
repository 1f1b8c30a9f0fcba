"""The bodies that the server reads, checked field by field. pydantic lives here and nowhere else.

Which fields are served at all is decided in `parameters`.
"""

from server.schemas.base import VersionName
from server.schemas.chat import ChatRequest
from server.schemas.completion import CompletionRequest
from server.schemas.conversations import (
    CreateConversationRequest,
    CreateItemsRequest,
    UpdateConversationRequest,
)
from server.schemas.generation import GenerationRequest
from server.schemas.responses import ResponseRequest
from server.schemas.sessions import (
    CreateSessionRequest,
    ForkRequest,
    IngestTextRequest,
    NameVersionRequest,
    RewindRequest,
)
from server.schemas.tokens import DetokenizeRequest, TokenizeRequest
from server.schemas.validation import component_schemas, document_body, octets_body, request_body, validate

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "CreateConversationRequest",
    "CreateItemsRequest",
    "CreateSessionRequest",
    "DetokenizeRequest",
    "ForkRequest",
    "GenerationRequest",
    "IngestTextRequest",
    "NameVersionRequest",
    "ResponseRequest",
    "RewindRequest",
    "TokenizeRequest",
    "UpdateConversationRequest",
    "VersionName",
    "component_schemas",
    "document_body",
    "octets_body",
    "request_body",
    "validate",
]

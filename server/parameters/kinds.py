"""Which names each kind of request serves: the fields of its schema."""

from server.parameters.review import Parameters
from server.schemas import ChatRequest, CompletionRequest, ResponseRequest

CHAT = Parameters(frozenset(ChatRequest.model_fields))
COMPLETION = Parameters(frozenset(CompletionRequest.model_fields))
RESPONSE = Parameters(frozenset(ResponseRequest.model_fields))

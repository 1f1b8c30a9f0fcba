"""Which names each kind of request serves: the fields of its schema."""

from collections.abc import Mapping

from server.parameters.review import Parameters
from server.schemas import ChatRequest, CompletionRequest, ResponseRequest

CHAT = Parameters(frozenset(ChatRequest.model_fields))
COMPLETION = Parameters(frozenset(CompletionRequest.model_fields))
RESPONSE = Parameters(frozenset(ResponseRequest.model_fields))

# By path.
KINDS: Mapping[str, Parameters] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
    "/v1/responses": RESPONSE,
}

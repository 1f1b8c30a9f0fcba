"""The bodies of /v1/conversations. An unknown field is a mistake: none of theirs asks for what we do not know."""

from server.schemas.base import ClosedBody, Metadata
from server.schemas.items import Item, Items


class CreateConversationRequest(ClosedBody):
    """POST /v1/conversations. The items are learned."""

    metadata: Metadata | None = None
    items: list[Item] | None = None


class UpdateConversationRequest(ClosedBody):
    """POST /v1/conversations/{id}. The metadata takes the place of what there was; null is none."""

    metadata: Metadata | None


class CreateItemsRequest(ClosedBody):
    """POST /v1/conversations/{id}/items."""

    items: Items

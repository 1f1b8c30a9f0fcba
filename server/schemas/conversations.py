"""The bodies of /v1/conversations. An unknown field is a mistake: none of theirs asks for what we do not know."""

from server.schemas.base import ClosedBody, Metadata, with_examples
from server.schemas.items import Item, Items


class CreateConversationRequest(ClosedBody):
    """POST /v1/conversations. The items are learned."""

    model_config = with_examples(
        {"metadata": {"topic": "gates"}, "items": [{"role": "user", "content": "Mary went to the garden."}]}
    )

    metadata: Metadata | None = None
    items: list[Item] | None = None


class UpdateConversationRequest(ClosedBody):
    """POST /v1/conversations/{id}. The metadata takes the place of what there was; null is none."""

    model_config = with_examples({"metadata": {"topic": "gardens"}})

    metadata: Metadata | None


class CreateItemsRequest(ClosedBody):
    """POST /v1/conversations/{id}/items."""

    model_config = with_examples({"items": [{"role": "user", "content": "The code of the north gate is 4 7 1."}]})

    items: Items

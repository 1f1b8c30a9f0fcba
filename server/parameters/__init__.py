"""The names of requests' fields: which are served, refused or ignored."""

from server.parameters.items import review_items
from server.parameters.kinds import CHAT, COMPLETION, RESPONSE
from server.parameters.messages import review_messages

__all__ = ["CHAT", "COMPLETION", "RESPONSE", "review_items", "review_messages"]

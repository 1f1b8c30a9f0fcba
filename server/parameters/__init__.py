"""The names of requests' fields: which are served, refused or ignored."""

from server.parameters.kinds import CHAT, COMPLETION
from server.parameters.messages import review_messages

__all__ = ["CHAT", "COMPLETION", "review_messages"]

"""The bodies of /tokenize and /detokenize."""

from server.schemas.base import ClosedBody


class TokenizeRequest(ClosedBody):
    """POST /tokenize."""

    text: str


class DetokenizeRequest(ClosedBody):
    """POST /detokenize."""

    tokens: list[int]

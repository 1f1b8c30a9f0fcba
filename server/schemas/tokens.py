"""The bodies of /tokenize and /detokenize."""

from server.schemas.base import ClosedBody, with_examples


class TokenizeRequest(ClosedBody):
    """POST /tokenize."""

    model_config = with_examples({"text": "Mary went to the garden."})

    text: str


class DetokenizeRequest(ClosedBody):
    """POST /detokenize."""

    model_config = with_examples({"tokens": [40, 41, 42]})

    tokens: list[int]

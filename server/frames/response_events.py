"""The events of a response: it is created, its one message and that message's one text come about, and it ends.

Every event has a number of its own, counted from 0, so that a reader can say where it was.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.answers.items import message_item, output_text
from server.connections.streaming import encode_json
from server.errors import error_body

_PLACE = {"output_index": 0, "content_index": 0}


class ResponseEvents:
    """Call `begun` first, then `opened`, `said` and at last `ended`; or after any of them `failed`.

    begun: the response as it is while nothing has been said.
    """

    def __init__(self, begun: Mapping[str, Any], item_id: str) -> None:
        self._begun = begun
        self._item_id = item_id
        self._num_events = 0
        # What changes from delta to delta comes last, so that the rest is encoded once.
        delta = {"type": "response.output_text.delta", "item_id": item_id, **_PLACE}
        self._delta = f"event: response.output_text.delta\ndata: {encode_json(delta)[:-1]}"

    def begun(self) -> Iterator[bytes]:
        yield self._event("response.created", response=self._begun)
        yield self._event("response.in_progress", response=self._begun)

    def opened(self) -> Iterator[bytes]:
        """The message and its text, of which nothing has been said."""
        item = message_item(self._item_id, "assistant", "in_progress", [])
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", item_id=self._item_id, **_PLACE, part=output_text(""))

    def said(self, text: str, logprobs: Sequence[Mapping[str, Any]]) -> bytes:
        number, told = self._next_number(), encode_json(logprobs) if logprobs else "[]"
        return f'{self._delta},"sequence_number":{number},"logprobs":{told},"delta":{encode_json(text)}}}\n\n'.encode()

    def ended(self, body: Mapping[str, Any]) -> Iterator[bytes]:
        """body: the response as it is kept."""
        (item,) = body["output"]
        (part,) = item["content"]
        here = {"item_id": self._item_id, **_PLACE}
        yield self._event("response.output_text.done", **here, text=part["text"], logprobs=part["logprobs"])
        yield self._event("response.content_part.done", **here, part=part)
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{body['status']}", response=body)

    def failed(self, error: Exception) -> Iterator[bytes]:
        """The response's own error has no words but its type's; the event after it has ours, in the shape of all
        errors too, which the stock library raises."""
        told = error_body(error)["error"]
        code = "rate_limit_exceeded" if told["type"] == "rate_limit_error" else "server_error"
        response = {**self._begun, "status": "failed", "error": {"code": code, "message": told["message"]}}
        yield self._event("response.failed", response=response)
        yield self._event("error", code=told["code"], message=told["message"], param=told["param"], error=told)

    def _event(self, kind: str, **fields: Any) -> bytes:
        value = {"type": kind, "sequence_number": self._next_number(), **fields}
        return f"event: {kind}\ndata: {encode_json(value)}\n\n".encode()

    def _next_number(self) -> int:
        self._num_events += 1
        return self._num_events - 1


def replayed_events(body: Mapping[str, Any]) -> Iterator[bytes]:
    """All events of a response that is kept, its text in one piece; none when it is empty."""
    (item,) = body["output"]
    begun = {
        **body,
        "completed_at": None,
        "incomplete_details": None,
        "output": [],
        "status": "in_progress",
        "usage": None,
    }
    begun.pop("session", None)
    events = ResponseEvents(begun, item["id"])
    yield from events.begun()
    yield from events.opened()
    (part,) = item["content"]
    if part["text"]:
        yield events.said(part["text"], part["logprobs"])
    yield from events.ended(body)

"""JSON bodies on their way to what they ask for: where they are parsed and understood."""

import asyncio
import json
import threading
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from server.input.bodies import MAX_INLINE_NUM_BYTES, read_json


def thread_of_understanding(body: dict[str, Any]) -> int:
    raw = json.dumps(body).encode()
    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}

    async def receive() -> Message:
        return {"type": "http.request", "body": raw, "more_body": False}

    def understand(parsed: dict[str, Any]) -> int:
        assert parsed == body
        return threading.get_ident()

    return asyncio.run(read_json(Request(scope, receive), 2 * MAX_INLINE_NUM_BYTES, 10.0, understand))


@pytest.mark.parametrize(("num_characters", "is_inline"), [(10, True), (MAX_INLINE_NUM_BYTES, False)])
def test_only_a_large_body_is_understood_beside_the_event_loop(num_characters: int, is_inline: bool) -> None:
    thread = thread_of_understanding({"text": "a" * num_characters})
    assert (thread == threading.get_ident()) is is_inline

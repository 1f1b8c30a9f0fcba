"""Two ways to put a question to a server: our own client, and the stock `openai` package with one more header."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from openai import OpenAI

from clients import Client
from clients.protocol import ChatOptions

MAX_ANSWER_TOKENS = 20


class Asker(Protocol):
    """Asks one question greedily and gives the answer's text; `session_id` None is a question without a memory."""

    def __call__(self, question: str, session_id: str | None, *, read_only: bool) -> str: ...


@contextmanager
def open_asker(base_url: str, api_key: str | None, *, through_openai: bool) -> Iterator[Asker]:
    """Ask the server at `base_url` for as long as the context is open."""
    if through_openai:
        with OpenAI(base_url=f"{base_url}/v1", api_key=api_key or "none", max_retries=0) as sdk:
            yield OpenAIAsker(sdk)
    else:
        with Client(base_url, api_key) as client:
            yield ClientAsker(client)


class ClientAsker:
    """Asks through `clients.Client`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __call__(self, question: str, session_id: str | None, *, read_only: bool) -> str:
        options: ChatOptions = {"temperature": 0.0, "max_tokens": MAX_ANSWER_TOKENS}
        if session_id is not None:
            options |= {"session_id": session_id, "read_only": read_only, "history": "new"}
        return self._client.chat(question, **options).text


class OpenAIAsker:
    """Asks through the OpenAI SDK, as somebody does who has never heard of us: the session is a header."""

    def __init__(self, client: OpenAI) -> None:
        self._client = client
        self._model = client.models.list().data[0].id

    def __call__(self, question: str, session_id: str | None, *, read_only: bool) -> str:
        completion = self._client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": question}],
            temperature=0.0,
            max_completion_tokens=MAX_ANSWER_TOKENS,
            extra_headers={} if session_id is None else {"X-Session-Id": session_id},
            extra_body={"read_only": True} if read_only and session_id is not None else None,
        )
        return completion.choices[0].message.content or ""

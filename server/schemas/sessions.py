"""The bodies of /v1/sessions."""

from typing import Annotated

from pydantic import Field

from server.schemas.base import ClosedBody, Metadata, Version, with_examples


class ForkSource(ClosedBody):
    """Which version of which session a new one begins from; the committed one by default."""

    session_id: str
    version: Version | None = None


class CreateSessionRequest(ClosedBody):
    """POST /v1/sessions. Metadata and time to live are the source's when it is a fork that says nothing about them."""

    model_config = with_examples(
        {"id": "emma", "metadata": {"book": "Emma"}, "ttl_seconds": 86400}, {"from": {"session_id": "demo"}}
    )

    id: str | None = None
    metadata: Metadata | None = None
    ttl_seconds: int | None = None
    source: Annotated[ForkSource | None, Field(alias="from")] = None


class ForkRequest(ClosedBody):
    """POST /v1/sessions/{id}/fork."""

    model_config = with_examples({"new_id": "draft", "version": 1})

    new_id: str | None = None
    version: Version | None = None
    metadata: Metadata | None = None
    ttl_seconds: int | None = None


class RewindRequest(ClosedBody):
    """POST /v1/sessions/{id}/rewind."""

    model_config = with_examples({"version": 1})

    version: Version


class NameVersionRequest(ClosedBody):
    """POST /v1/sessions/{id}/versions; the committed version by default."""

    model_config = with_examples({"name": "before-chapter-2"})

    name: str
    version: Version | None = None


class IngestTextRequest(ClosedBody):
    """POST /v1/sessions/{id}/ingest with application/json."""

    model_config = with_examples({"text": "Mary went to the garden."})

    text: str

"""The bodies of /v1/sessions."""

from typing import Annotated

from pydantic import Field

from server.schemas.base import ClosedBody, Metadata, Version


class ForkSource(ClosedBody):
    """Which version of which session a new one begins from; the committed one by default."""

    session_id: str
    version: Version | None = None


class CreateSessionRequest(ClosedBody):
    """POST /v1/sessions. Metadata and time to live are the source's when it is a fork that says nothing about them."""

    id: str | None = None
    metadata: Metadata | None = None
    ttl_seconds: int | None = None
    source: Annotated[ForkSource | None, Field(alias="from")] = None


class ForkRequest(ClosedBody):
    """POST /v1/sessions/{id}/fork."""

    new_id: str | None = None
    version: Version | None = None
    metadata: Metadata | None = None
    ttl_seconds: int | None = None


class RewindRequest(ClosedBody):
    """POST /v1/sessions/{id}/rewind."""

    version: Version


class NameVersionRequest(ClosedBody):
    """POST /v1/sessions/{id}/versions; the committed version by default."""

    name: str
    version: Version | None = None


class IngestTextRequest(ClosedBody):
    """POST /v1/sessions/{id}/ingest with application/json."""

    text: str

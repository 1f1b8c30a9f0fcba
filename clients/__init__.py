"""Clients of Atlas Serve, for Python and for the shell. These names are the whole public interface."""

from clients.async_client import AsyncClient
from clients.client import Client
from clients.errors import ApiError, ClientError, ConnectionFailedError, ProtocolError
from clients.messages import (
    ChatAnswer,
    ChatDelta,
    IngestProgress,
    IngestResult,
    MemorySample,
    OpenIngest,
    SessionCommit,
    SessionInfo,
    SessionMemory,
    SessionPage,
    Usage,
)
from clients.protocol import ChatOptions
from clients.replay import ReplayProgress, ReplayResult
from clients.versions import CreateOptions, ExportedSession, ForkOptions, RewindOptions, SessionVersion

__all__ = [
    "ApiError",
    "AsyncClient",
    "ChatAnswer",
    "ChatDelta",
    "ChatOptions",
    "Client",
    "ClientError",
    "ConnectionFailedError",
    "CreateOptions",
    "ExportedSession",
    "ForkOptions",
    "IngestProgress",
    "IngestResult",
    "MemorySample",
    "OpenIngest",
    "ProtocolError",
    "ReplayProgress",
    "ReplayResult",
    "RewindOptions",
    "SessionCommit",
    "SessionInfo",
    "SessionMemory",
    "SessionPage",
    "SessionVersion",
    "Usage",
]

"""What can go wrong between a client and a server, as one tree:

ClientError
├── ApiError               the server answered, and refused; carries the status and the code of its error object
├── ConnectionFailedError  no answer, or one that was cut: whether the request took effect is not known
└── ProtocolError          an answer that is not of this protocol (another program listens there, or a newer server)
"""

from __future__ import annotations


class ClientError(Exception):
    """The root of everything that these clients raise on their own account."""


class ApiError(ClientError):
    """The server's error object. `status` is None when it came inside a stream, after the status had been sent."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int | None,
        param: str | None = None,
        retry_after_seconds: float | None = None,
        expected_offset: int | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.message = message
        self.code = code
        self.status = status
        self.param = param
        self.retry_after_seconds = retry_after_seconds
        self.expected_offset = expected_offset


class ConnectionFailedError(ClientError):
    """The server could not be reached, or went away before its answer was whole."""


class ProtocolError(ClientError):
    """The answer makes no sense here."""

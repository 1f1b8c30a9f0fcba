"""The server that foreign clients talk to: the one of the server's own tests."""

from tests.server.conftest import client, forker, model, server, session_id

__all__ = ["client", "forker", "model", "server", "session_id"]

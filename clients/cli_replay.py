"""`atlas sessions replay`: a session's memory made anew from its token log."""

from __future__ import annotations

import typer

from clients.cli_display import ReplayDisplay, describe_replay
from clients.cli_options import DEFAULT_BASE_URL, ApiKey, BaseUrl, SessionArgument, failures_in_one_line
from clients.client import Client


def replay_session(session_id: SessionArgument, base_url: BaseUrl = DEFAULT_BASE_URL, api_key: ApiKey = None) -> None:
    """Rebuild a memory from the log of its tokens: its snapshot is lost, or the server has another model."""
    with failures_in_one_line(), Client(base_url, api_key) as client:
        with ReplayDisplay(session_id) as display:
            result = client.replay_session(session_id, display.update)
        typer.echo(describe_replay(result))


def add_to(app: typer.Typer) -> None:
    app.command("replay")(replay_session)

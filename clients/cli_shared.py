"""What the commands of `atlas` share: where the server is, who is asking, and how a failure ends the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

from clients.client import Client
from clients.errors import ClientError, ConnectionFailedError

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_NO_CONNECTION = 3
EXIT_INTERRUPTED = 130

BaseUrl = Annotated[str, typer.Option(envvar="ATLAS_BASE_URL", help="Where the server listens.")]
ApiKey = Annotated[str | None, typer.Option(envvar="ATLAS_API_KEY", help="Its key, if it wants one.")]
DEFAULT_BASE_URL = "http://127.0.0.1:8000"


@contextmanager
def connected(base_url: str, api_key: str | None) -> Iterator[Client]:
    """A client. What goes wrong is told in one line, and is the process' exit status."""
    try:
        with Client(base_url, api_key) as client:
            yield client
    except ClientError as error:
        typer.echo(f"atlas: {' '.join(str(error).split())}", err=True)
        is_connection = isinstance(error, ConnectionFailedError)
        raise typer.Exit(EXIT_NO_CONNECTION if is_connection else EXIT_REFUSED) from error
    except KeyboardInterrupt as error:
        typer.echo("atlas: interrupted", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from error


def refuse(reason: str) -> NoReturn:
    """Ends the process as one that was called wrongly."""
    typer.echo(f"atlas: {reason}", err=True)
    raise typer.Exit(EXIT_USAGE)

"""What the commands of `atlas` share: options, exit statuses, and failures in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from clients.errors import ClientError, ConnectionFailedError

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_NO_CONNECTION = 3
EXIT_INTERRUPTED = 130

BaseUrl = Annotated[str, typer.Option(envvar="ATLAS_BASE_URL", help="Where the server listens.")]
ApiKey = Annotated[str | None, typer.Option(envvar="ATLAS_API_KEY", help="Its key, if it wants one.")]
SessionArgument = Annotated[str, typer.Argument(metavar="ID")]
DEFAULT_BASE_URL = "http://127.0.0.1:8000"


@contextmanager
def failures_in_one_line() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        typer.echo(f"atlas: {' '.join(str(error).split())}", err=True)
        is_connection = isinstance(error, ConnectionFailedError)
        raise typer.Exit(EXIT_NO_CONNECTION if is_connection else EXIT_REFUSED) from error
    except KeyboardInterrupt as error:
        typer.echo("atlas: interrupted", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from error

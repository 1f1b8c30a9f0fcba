"""The `atlas` command: read documents into a session, talk to it; `cli_sessions` has the rest.

Promises: answers go to standard output and everything else to standard error; a failure is one line and an exit status:
0 done · 1 the server refused · 2 wrong usage · 3 the server could not be reached or went away · 130 interrupted.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Annotated, TextIO

import typer

from clients.cli_display import IngestDisplay, describe_ingest
from clients.cli_files import reading
from clients.cli_sessions import sessions_app
from clients.cli_shared import DEFAULT_BASE_URL, ApiKey, BaseUrl, connected
from clients.client import Client
from clients.errors import ClientError
from clients.protocol import ChatOptions, Message

with suppress(ImportError):
    # Line editing and history for input(); the module acts by being imported, and Windows has none.
    import readline  # noqa: F401

SessionOption = Annotated[str, typer.Option("--session", "-s", help="The session's id; a new one is made when used.")]

app = typer.Typer(
    help="Talk to an Atlas server, whose sessions remember.",
    epilog="Exit status: 0 done, 1 refused by the server, 2 wrong usage, 3 server not reached or gone, 130 stopped.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(sessions_app, name="sessions")


def main() -> None:
    """The console script."""
    app()


@app.command()
def ingest(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Text in UTF-8; - is standard input.")],
    session: SessionOption,
    document_id: Annotated[
        str | None, typer.Option(help="Name the document; under a new name it is read once more.")
    ] = None,
    patience: Annotated[float, typer.Option(help="Seconds without progress before giving up.")] = 60.0,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    api_key: ApiKey = None,
) -> None:
    """Let a session read documents. An interrupted one goes on where the server's last commit ended."""
    if document_id is not None and len(files) > 1:
        raise typer.BadParameter("one --document-id names one FILE")
    with connected(base_url, api_key) as client:
        for name in files:
            with reading(name) as document, IngestDisplay(name) as display:
                result = client.ingest(
                    session, document, document_id=document_id, on_progress=display.update, patience_seconds=patience
                )
            typer.echo(describe_ingest(name, result))


@app.command()
def chat(
    session: SessionOption,
    question: Annotated[str | None, typer.Argument(help="Ask this and end; without it, a conversation.")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Leave no trace in the session.")] = False,
    system: Annotated[str | None, typer.Option(help="A system message, learned once.")] = None,
    model: Annotated[str | None, typer.Option(help="The model's name, if the server has several.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    api_key: ApiKey = None,
) -> None:
    """Ask a question or hold a conversation. Standard input is the question when it is a pipe."""
    options: ChatOptions = {"session_id": session}
    if read_only:
        options["read_only"] = True
    if model is not None:
        options["model"] = model
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    if temperature is not None:
        options["temperature"] = temperature
    if seed is not None:
        options["seed"] = seed
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read().strip()
    with connected(base_url, api_key) as client:
        if question is not None:
            _answer(client, question, system, options)
        else:
            _converse(client, system, options)


def _answer(client: Client, question: str, system: str | None, options: ChatOptions) -> None:
    messages: list[Message] = [{"role": "user", "content": question}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    output: TextIO = sys.stdout
    for delta in client.stream_chat(messages, **options):
        output.write(delta.text)
        output.flush()
    output.write("\n")


def _converse(client: Client, system: str | None, options: ChatOptions) -> None:
    """Ends at end of input. A refused question does not end it, and an interrupted answer is not kept."""
    typer.echo("Ctrl-C stops an answer, which is then not kept; Ctrl-D ends.", err=True)
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            typer.echo("", err=True)
            return
        if not question:
            continue
        try:
            _answer(client, question, system, options)
        except KeyboardInterrupt:
            typer.echo("\n(stopped; the turn was not kept)", err=True)
        except ClientError as error:
            typer.echo(f"atlas: {error}", err=True)


if __name__ == "__main__":
    main()

"""The `atlas` command: read documents into a session, talk to it, see what sessions there are.

Promises: answers go to standard output and everything else to standard error; a failure is one line and an exit status:
0 done · 1 the server refused · 2 wrong usage · 3 the server could not be reached or went away · 130 interrupted.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, BinaryIO, TextIO

import typer
from rich.console import Console
from rich.table import Table

from clients import cli_replay
from clients.cli_display import IngestDisplay, age, describe_bytes, describe_ingest
from clients.cli_memory import heads_table, plot_samples, samples_table
from clients.cli_options import (
    DEFAULT_BASE_URL,
    EXIT_USAGE,
    ApiKey,
    BaseUrl,
    SessionArgument,
    failures_in_one_line,
)
from clients.client import Client
from clients.errors import ClientError
from clients.messages import SessionInfo
from clients.protocol import ChatOptions, Message

with suppress(ImportError):
    # Line editing and history for input(); the module acts by being imported, and Windows has none.
    import readline  # noqa: F401

SessionOption = Annotated[str, typer.Option("--session", "-s", help="The session's id; a new one is made when used.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(
    help="Talk to an Atlas server, whose sessions remember.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
sessions_app = typer.Typer(help="List, show, rebuild and delete sessions.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(sessions_app, name="sessions")
cli_replay.add_to(sessions_app)


def main() -> None:
    """The console script."""
    app()


@app.command()
def ingest(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Text in UTF-8; - is standard input.")],
    session: SessionOption,
    document_id: Annotated[
        str | None, typer.Option(help="Name the document; under a new name it is read once more.")
    ] = None,
    patience: Annotated[float, typer.Option(help="Seconds without progress before giving up.")] = 60.0,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    api_key: ApiKey = None,
) -> None:
    """Let a session read documents; an interrupted one goes on where the server's last commit ended."""
    if document_id is not None and len(files) > 1:
        raise typer.BadParameter("one --document-id names one FILE")
    with failures_in_one_line(), Client(base_url, api_key) as client:
        for name in files:
            with _open_document(name) as document, IngestDisplay(name) as display:
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
    """Ask one question (an argument, or standard input when it is a pipe), or hold a conversation."""
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
    with failures_in_one_line(), Client(base_url, api_key) as client:
        if question is not None:
            _answer(client, question, system, options)
        else:
            _converse(client, system, options)


@sessions_app.command("list")
def list_sessions(base_url: BaseUrl = DEFAULT_BASE_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """All of your sessions, by id."""
    with failures_in_one_line(), Client(base_url, api_key) as client:
        sessions = list(_all_sessions(client))
    if as_json:
        typer.echo(json.dumps([asdict(session) for session in sessions]))
        return
    table = Table("session", "version", "tokens read", "size", "last used", "open document", box=None)
    for info in sessions:
        reading = "" if info.open_ingest is None else f"from byte {info.open_ingest.offset:,}"
        table.add_row(
            info.session_id,
            str(info.version),
            f"{info.position:,}",
            describe_bytes(info.num_bytes),
            age(info.last_used),
            reading,
        )
    Console(soft_wrap=True).print(table)


@sessions_app.command("show")
def show_session(session_id: SessionArgument, base_url: BaseUrl = DEFAULT_BASE_URL, api_key: ApiKey = None) -> None:
    """One session, as JSON."""
    with failures_in_one_line(), Client(base_url, api_key) as client:
        typer.echo(json.dumps(asdict(client.get_session(session_id)), indent=2))


@sessions_app.command("memory")
def show_memory(
    session_id: SessionArgument,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw each layer over the session, as text.")] = False,
) -> None:
    """What a session's memory is like: each head now, and the layers over the session."""
    if as_json and plot:
        raise typer.BadParameter("--json and --plot exclude each other")
    with failures_in_one_line(), Client(base_url, api_key) as client:
        memory = client.get_memory(session_id)
    if as_json:
        typer.echo(json.dumps(asdict(memory)))
        return
    if not plot:
        Console(soft_wrap=True).print(heads_table(memory))
    if not memory.samples:
        typer.echo(f"atlas: {session_id} has no samples yet: a server takes one every some thousand tokens", err=True)
    elif plot:
        typer.echo(plot_samples(memory.samples))
    else:
        Console(soft_wrap=True).print("", samples_table(memory.samples), sep="\n")


@sessions_app.command("delete")
def delete_sessions(
    session_ids: Annotated[list[str], typer.Argument(metavar="ID...")],
    base_url: BaseUrl = DEFAULT_BASE_URL,
    api_key: ApiKey = None,
) -> None:
    """Forget sessions for ever."""
    with failures_in_one_line(), Client(base_url, api_key) as client:
        for session_id in session_ids:
            client.delete_session(session_id)
            typer.echo(f"{session_id} deleted")


@contextmanager
def _open_document(name: str) -> Iterator[BinaryIO]:
    """Standard input is spooled to a file first: what cannot be read again cannot be resumed."""
    if name == "-":
        with tempfile.TemporaryFile() as spooled:
            while piece := sys.stdin.buffer.read(1024 * 1024):
                spooled.write(piece)
            spooled.seek(0)
            yield spooled
        return
    try:
        with Path(name).open("rb") as document:
            yield document
    except OSError as error:
        typer.echo(f"atlas: {name}: {error.strerror}", err=True)
        raise typer.Exit(EXIT_USAGE) from error


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


def _all_sessions(client: Client) -> Iterator[SessionInfo]:
    after: str | None = None
    while True:
        page = client.list_sessions(after=after)
        yield from page.sessions
        if not page.has_more or not page.sessions:
            return
        after = page.sessions[-1].session_id


if __name__ == "__main__":
    main()

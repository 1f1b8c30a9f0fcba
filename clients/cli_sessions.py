"""`atlas sessions`: what sessions there are, their versions, and sessions as files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from clients.cli_display import ReplayDisplay, age, describe_bytes, describe_replay, table_console, versions_table
from clients.cli_files import reading, writing
from clients.cli_memory import heads_table, plot_samples, samples_table
from clients.cli_shared import DEFAULT_BASE_URL, ApiKey, BaseUrl, connected
from clients.client import Client
from clients.messages import SessionInfo

SessionArgument = Annotated[str, typer.Argument(metavar="ID", help="The session's id.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Of letters, digits and . _ : -, not all digits.")]
VersionOption = Annotated[
    str | None, typer.Option("--version", metavar="VERSION", help="A number or a name; without it, the newest.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

sessions_app = typer.Typer(
    help="List sessions, go back in them, copy them, carry them elsewhere.", no_args_is_help=True, rich_markup_mode=None
)


@sessions_app.command("list")
def list_sessions(base_url: BaseUrl = DEFAULT_BASE_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """All of your sessions, by id."""
    with connected(base_url, api_key) as client:
        sessions = list(_all_sessions(client))
    if as_json:
        typer.echo(json.dumps([asdict(session) for session in sessions]))
        return
    table = Table("session", "version", "tokens read", "size", "last used", "open document", box=None)
    for info in sessions:
        reads = "" if info.open_ingest is None else f"from byte {info.open_ingest.offset:,}"
        size, used = describe_bytes(info.num_bytes), age(info.last_used)
        table.add_row(info.session_id, str(info.version), f"{info.position:,}", size, used, reads)
    table_console().print(table)


@sessions_app.command("show")
def show_session(session_id: SessionArgument, base_url: BaseUrl = DEFAULT_BASE_URL, api_key: ApiKey = None) -> None:
    """One session, as JSON."""
    with connected(base_url, api_key) as client:
        typer.echo(json.dumps(asdict(client.get_session(session_id)), indent=2))


@sessions_app.command("memory")
def show_memory(
    session_id: SessionArgument,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw each layer over the session, as text.")] = False,
) -> None:
    """What a session's memory is like. Each head now, and the layers over the session."""
    if as_json and plot:
        raise typer.BadParameter("--json and --plot exclude each other")
    with connected(base_url, api_key) as client:
        memory = client.get_memory(session_id)
    if as_json:
        typer.echo(json.dumps(asdict(memory)))
        return
    if not plot:
        table_console().print(heads_table(memory))
    if not memory.samples:
        typer.echo(f"atlas: {session_id} has no samples yet: a server takes one every some thousand tokens", err=True)
    elif plot:
        typer.echo(plot_samples(memory.samples))
    else:
        table_console().print("", samples_table(memory.samples), sep="\n")


@sessions_app.command("versions")
def list_versions(
    session_id: SessionArgument, base_url: BaseUrl = DEFAULT_BASE_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """The versions that are kept, newest first. Every turn makes one, and the last few stay."""
    with connected(base_url, api_key) as client:
        versions = client.list_versions(session_id)
    if as_json:
        typer.echo(json.dumps([asdict(version) for version in versions]))
    else:
        table_console().print(versions_table(versions))


@sessions_app.command("name")
def name_version(
    session_id: SessionArgument,
    name: NameArgument,
    version: VersionOption = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    api_key: ApiKey = None,
) -> None:
    """Keep a version for as long as it has a name."""
    with connected(base_url, api_key) as client:
        versions = client.name_version(session_id, name, version)
    named = next(each.version for each in versions if each.name == name)
    typer.echo(f"version {named} of {session_id} is named {name}")


@sessions_app.command("unname")
def unname_version(
    session_id: SessionArgument, name: NameArgument, base_url: BaseUrl = DEFAULT_BASE_URL, api_key: ApiKey = None
) -> None:
    """Take a name away. The version then stays only while it is one of the last few."""
    with connected(base_url, api_key) as client:
        client.unname_version(session_id, name)
    typer.echo(f"no version of {session_id} is named {name}")


@sessions_app.command("fork")
def fork_session(
    session_id: SessionArgument,
    new_id: Annotated[str, typer.Argument(metavar="NEW_ID", help="The copy's id, which must be a new one.")],
    version: VersionOption = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    api_key: ApiKey = None,
) -> None:
    """Copy a session. What either learns from then on, the other does not."""
    with connected(base_url, api_key) as client:
        info = client.fork_session(session_id, new_id, version=version)
    typer.echo(f"{info.session_id} begins at token {info.position:,}")


@sessions_app.command("rewind")
def rewind_session(
    session_id: SessionArgument,
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="A number or a name; `atlas sessions versions` lists them.")
    ],
    base_url: BaseUrl = DEFAULT_BASE_URL,
    api_key: ApiKey = None,
) -> None:
    """Go back to a version. That makes a new version, so it can itself be undone."""
    with connected(base_url, api_key) as client:
        session = client.rewind_session(session_id, version)
    typer.echo(
        f"{session.session_id} is at version {session.version}, token {session.position:,}, "
        f"as version {session.rewound_to} was ({session.durability})"
    )


@sessions_app.command("export")
def export_session(
    session_id: SessionArgument,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Written whole or not at all; - is standard output.")],
    version: VersionOption = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    api_key: ApiKey = None,
) -> None:
    """Write a session to a file. Any server with the same model makes a session of it.

    The file is readable for its owner alone: it holds what the session has learned.
    """
    with connected(base_url, api_key) as client, writing(file) as output:
        exported = client.export_session(session_id, output, version)
    if file != "-":
        typer.echo(f"{file}: version {exported.version} of {session_id}, {describe_bytes(exported.num_bytes)}")


@sessions_app.command("import")
def import_session(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="What `atlas sessions export` wrote; - is standard input.")
    ],
    session_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="What to call it; without it, the server finds an id.")
    ] = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    api_key: ApiKey = None,
) -> None:
    """Make a session from a file. It has learned what the exported one had."""
    with connected(base_url, api_key) as client, reading(file) as snapshot:
        info = client.import_session(snapshot, session_id)
    typer.echo(f"{info.session_id} begins at token {info.position:,}")


@sessions_app.command("replay")
def replay_session(session_id: SessionArgument, base_url: BaseUrl = DEFAULT_BASE_URL, api_key: ApiKey = None) -> None:
    """Rebuild a memory from the log of its tokens.

    For a snapshot that is lost, or a server that has another model with the same tokenizer. The session must have begun
    on a server with --token-log.
    """
    with connected(base_url, api_key) as client:
        with ReplayDisplay(session_id) as display:
            result = client.replay_session(session_id, display.update)
        typer.echo(describe_replay(result))


@sessions_app.command("delete")
def delete_sessions(
    session_ids: Annotated[list[str], typer.Argument(metavar="ID", help="The sessions' ids.")],
    base_url: BaseUrl = DEFAULT_BASE_URL,
    api_key: ApiKey = None,
) -> None:
    """Forget sessions for ever, with all of their versions."""
    with connected(base_url, api_key) as client:
        for session_id in session_ids:
            client.delete_session(session_id)
            typer.echo(f"{session_id} deleted")


def _all_sessions(client: Client) -> Iterator[SessionInfo]:
    after: str | None = None
    while True:
        page = client.list_sessions(after=after)
        yield from page.sessions
        if not page.has_more or not page.sessions:
            return
        after = page.sessions[-1].session_id

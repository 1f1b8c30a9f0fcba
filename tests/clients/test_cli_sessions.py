"""`atlas sessions` as a process, against a real server: versions, and sessions as files."""

import json
import os
import pty
import subprocess
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clients import Client
from clients.cli import app
from tests.clients.test_cli import ATLAS, atlas, environment
from tests.clients.test_versions import HEADERS, answering, say
from tests.server_process import ServerProcess

COMMANDS = ("list", "show", "memory", "versions", "name", "unname", "fork", "rewind", "export", "import", "delete")


def test_a_session_is_named_gone_back_to_and_copied(server: ServerProcess, client: Client) -> None:
    say(client, "cv", "one", "two")
    base_url = server.base_url
    assert (
        atlas(base_url, "sessions", "name", "cv", "first", "--version", "1").stdout
        == "version 1 of cv is named first\n"
    )
    assert atlas(base_url, "sessions", "name", "cv", "newest").stdout == "version 2 of cv is named newest\n"
    shown = atlas(base_url, "sessions", "versions", "cv").stdout.splitlines()
    assert [line.split()[:2] for line in shown] == [["version", "name"], ["2", "newest"], ["1", "first"]]
    assert shown[1].split()[-1] == "committed"
    listed = json.loads(atlas(base_url, "sessions", "versions", "cv", "--json").stdout)
    assert listed == [asdict(version) for version in client.list_versions("cv")]

    forked = atlas(base_url, "sessions", "fork", "cv", "cv-fork", "--version", "first")
    position = client.list_versions("cv")[-1].position
    assert forked.stdout == f"cv-fork begins at token {position:,}\n"
    back = atlas(base_url, "sessions", "rewind", "cv", "1")
    assert back.stdout == f"cv is at version 3, token {position:,}, as version 1 was (disk)\n"
    assert client.get_session("cv").tokens_digest == client.get_session("cv-fork").tokens_digest
    assert atlas(base_url, "sessions", "unname", "cv", "newest").stdout == "no version of cv is named newest\n"
    gone = atlas(base_url, "sessions", "rewind", "cv", "newest")
    assert (gone.returncode, gone.stdout, gone.stderr.count("\n")) == (1, "", 1)
    assert gone.stderr.startswith("atlas: version_not_found: ")


def test_a_session_is_carried_in_a_file(server: ServerProcess, client: Client, tmp_path: Path) -> None:
    say(client, "cf", "one", "two")
    file = tmp_path / "cf.atls"
    file.write_bytes(b"what was here before")
    written = atlas(server.base_url, "sessions", "export", "cf", str(file), "--version", "1")
    assert written.returncode == 0, written.stderr
    assert written.stdout.startswith(f"{file}: version 1 of cf, ")
    assert file.read_bytes().startswith(b"ATLS")
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]
    position = client.list_versions("cf")[-1].position
    made = atlas(server.base_url, "sessions", "import", str(file), "--id", "cf-in")
    assert made.stdout == f"cf-in begins at token {position:,}\n"
    taken = atlas(server.base_url, "sessions", "import", str(file), "--id", "cf-in")
    assert (taken.returncode, taken.stderr.count("\n")) == (1, 1)


def test_a_session_goes_through_a_pipe(server: ServerProcess, client: Client) -> None:
    say(client, "cp", "one")
    exported = subprocess.run(
        [*ATLAS, "sessions", "export", "cp", "-"], env=environment(server.base_url), capture_output=True, timeout=60
    )
    assert (exported.returncode, exported.stderr) == (0, b"")
    subprocess.run(
        [*ATLAS, "sessions", "import", "-", "--id", "cp-in"],
        env=environment(server.base_url),
        input=exported.stdout,
        check=True,
        timeout=60,
    )
    assert client.get_session("cp-in").tokens_digest == client.get_session("cp").tokens_digest


def test_a_snapshot_is_not_written_to_a_terminal(server: ServerProcess, client: Client) -> None:
    say(client, "ct", "one")
    leader, follower = pty.openpty()
    command = [*ATLAS, "sessions", "export", "ct", "-"]
    process = subprocess.run(
        command, env=environment(server.base_url), stdout=follower, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(follower)
    os.close(leader)
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert "terminal" in process.stderr


def test_an_export_that_fails_leaves_what_was_there(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "book.atls"
    file.write_bytes(b"an older export")
    head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    with answering(f"HTTP/1.1 200 OK\r\n{head}\r\nATLS".encode()) as address:
        cut = atlas(address, "sessions", "export", "s", str(file))
    assert (cut.returncode, cut.stdout, cut.stderr.count("\n")) == (3, "", 1)
    assert atlas(server.base_url, "sessions", "export", "nobody", str(file)).returncode == 1
    assert file.read_bytes() == b"an older export"
    assert list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_opened_is_wrong_usage(server: ServerProcess, client: Client, tmp_path: Path) -> None:
    say(client, "co", "one")
    for arguments in (
        ["export", "co", str(tmp_path / "no" / "where")],
        ["export", "co", str(tmp_path)],
        ["import", str(tmp_path / "missing")],
    ):
        result = atlas(server.base_url, "sessions", *arguments)
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.stderr
        assert arguments[-1] in result.stderr


def test_a_pipe_is_written_to_and_not_replaced(server: ServerProcess, client: Client, tmp_path: Path) -> None:
    say(client, "cq", "one")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    said: list[bytes] = []
    reader = threading.Thread(target=lambda: said.append(pipe.read_bytes()))
    reader.start()
    assert atlas(server.base_url, "sessions", "export", "cq", str(pipe)).returncode == 0
    reader.join()
    assert said[0].startswith(b"ATLS")
    assert pipe.is_fifo()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_in_one_line_what_it_does_and_what_it_takes(command: str) -> None:
    overview = CliRunner().invoke(app, ["sessions", "--help"]).stdout
    line = next(line for line in overview.splitlines() if line.split()[:1] == [command])
    assert line.endswith("."), line
    assert not line.endswith("..."), line
    told = CliRunner().invoke(app, ["sessions", command, "--help"])
    assert told.exit_code == 0
    assert "ATLAS_BASE_URL" in told.stdout
    assert ("Arguments:" in told.stdout) == (command != "list")

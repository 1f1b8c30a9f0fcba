"""The `atlas` command as a process, against a real server."""

import json
import os
import pty
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from clients import Client
from clients.cli_display import age, describe_bytes
from tests.clients.test_client import DOCUMENT
from tests.server_process import ServerProcess, find_free_port

ATLAS = [sys.executable, "-c", "from clients.cli import main; main()"]


def environment(base_url: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ATLAS_")}
    return {**inherited, "ATLAS_BASE_URL": base_url}


def atlas(base_url: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ATLAS, *arguments], env=environment(base_url), input=stdin, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_bytes(DOCUMENT)
    return path


def test_a_file_is_read_and_asked_about(server: ServerProcess, client: Client, book: Path) -> None:
    ingested = atlas(server.base_url, "ingest", str(book), "--session", "cli")
    info = client.get_session("cli")
    assert ingested.returncode == 0
    assert f"{len(DOCUMENT):,} bytes" in ingested.stdout
    assert f"session cli is at version {info.version}, token {info.position:,} (disk)" in ingested.stdout
    assert ingested.stderr == ""
    expected = client.chat("Who?", session_id="cli", read_only=True, max_tokens=6, temperature=0.0).text
    options = ["--session", "cli", "--read-only", "--max-tokens", "6", "--temperature", "0"]
    assert atlas(server.base_url, "chat", *options, "Who?").stdout == expected + "\n"
    assert atlas(server.base_url, "chat", *options, stdin="Who?\n").stdout == expected + "\n"
    assert client.get_session("cli") == info


def test_standard_input_is_a_document_too(server: ServerProcess, client: Client) -> None:
    result = atlas(server.base_url, "ingest", "-", "--session", "cli-stdin", stdin=DOCUMENT.decode())
    assert result.returncode == 0, result.stderr
    assert client.get_session("cli-stdin").open_ingest is None


def test_sessions_are_listed_shown_and_deleted(server: ServerProcess, client: Client) -> None:
    client.create_session("cli-old", metadata={"a": "b"})
    listed = atlas(server.base_url, "sessions", "list", "--json")
    assert "cli-old" in [session["session_id"] for session in json.loads(listed.stdout)]
    assert "cli-old" in atlas(server.base_url, "sessions", "list").stdout
    assert json.loads(atlas(server.base_url, "sessions", "show", "cli-old").stdout)["metadata"] == {"a": "b"}
    assert atlas(server.base_url, "sessions", "delete", "cli-old").stdout == "cli-old deleted\n"
    gone = atlas(server.base_url, "sessions", "show", "cli-old")
    assert gone.returncode == 1
    assert gone.stdout == ""
    assert gone.stderr.startswith("atlas: session_not_found: ")
    assert gone.stderr.count("\n") == 1


def test_a_sessions_memory_is_shown_head_by_head(server: ServerProcess, client: Client) -> None:
    client.chat([{"role": "user", "content": "a"}], session_id="cli-memory", max_tokens=1)
    told = json.loads(atlas(server.base_url, "sessions", "memory", "cli-memory", "--json").stdout)
    memory = client.get_memory("cli-memory")
    assert told == {**asdict(memory), "heads": list(memory.heads), "samples": []}
    shown = atlas(server.base_url, "sessions", "memory", "cli-memory")
    lines = shown.stdout.splitlines()
    assert lines[0].split()[:3] == ["layer", "head", "matrix"]
    assert len(lines) == 1 + len(told["heads"])
    assert (shown.returncode, shown.stderr.count("\n")) == (0, 1)
    assert "cli-memory has no samples yet" in shown.stderr
    assert atlas(server.base_url, "sessions", "memory", "cli-nobody").returncode == 1


def test_a_sessions_memory_is_shown_and_drawn_over_the_session(
    server: ServerProcess, client: Client, book: Path
) -> None:
    with book.open("rb") as document:
        client.ingest("cli-samples", document)
    memory = client.get_memory("cli-samples")
    assert len(memory.samples) > 3
    first, *_, last = memory.samples
    assert 100 <= first.position < last.position <= memory.position
    shown = atlas(server.base_url, "sessions", "memory", "cli-samples").stdout.splitlines()
    rows = shown[shown.index("") + 1 :]
    assert rows[0].split()[:3] == ["tokens", "norm", "from"]
    assert rows[1].split()[0] == f"{first.position:,}"
    assert rows[-1].split()[0] == f"{last.position:,}"
    drawn = atlas(server.base_url, "sessions", "memory", "cli-samples", "--plot").stdout.splitlines()
    assert drawn[0] == "norm"
    assert [line.split()[:2] for line in drawn[1:3]] == [["layer", "0"], ["layer", "1"]]
    assert len(drawn[1].split()[2]) == len(memory.samples)
    assert drawn[-1].endswith(f"to token {last.position:,}")
    both = atlas(server.base_url, "sessions", "memory", "cli-samples", "--plot", "--json")
    assert both.returncode == 2


def test_an_unreachable_server_is_status_3_and_one_line(book: Path) -> None:
    nowhere = f"http://127.0.0.1:{find_free_port()}"
    for command in (
        ["sessions", "list"],
        ["chat", "--session", "s", "Hi"],
        ["ingest", str(book), "--session", "s", "--patience", "0"],
    ):
        result = atlas(nowhere, *command)
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (3, "", 1)
        assert nowhere in result.stderr


def test_wrong_usage_is_status_2(server: ServerProcess, book: Path, tmp_path: Path) -> None:
    assert atlas(server.base_url, "chat", "Hi").returncode == 2
    assert atlas(server.base_url, "ingest", str(book), str(book), "-s", "s", "--document-id", "d").returncode == 2
    missing = atlas(server.base_url, "ingest", str(tmp_path / "missing.txt"), "-s", "s")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "missing.txt: No such file" in missing.stderr


def test_the_same_command_goes_on_after_the_server_was_killed(
    server: ServerProcess, client: Client, tmp_path: Path
) -> None:
    long = tmp_path / "long.txt"
    long.write_bytes(DOCUMENT * 4)
    command = [*ATLAS, "ingest", str(long), "--session", "cli-cut", "--patience", "0"]
    first = subprocess.Popen(command, env=environment(server.base_url), stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while "cli-cut" not in [info.session_id for info in client.list_sessions().sessions]:
            assert time.monotonic() < deadline, "nothing was committed"
            time.sleep(0.05)
        server.kill9()
        _, stderr = first.communicate(timeout=60)
    finally:
        first.kill()
        first.wait()
    server.start()
    assert (first.returncode, stderr.count("\n")) == (3, 1)
    opened = client.get_session("cli-cut").open_ingest
    assert opened is not None
    assert 0 < opened.offset < len(DOCUMENT) * 4
    second = atlas(server.base_url, "ingest", str(long), "--session", "cli-cut")
    assert second.returncode == 0, second.stderr
    assert client.get_session("cli-cut").open_ingest is None
    assert f"{len(DOCUMENT) * 4:,} bytes" in second.stdout


def test_a_conversation_goes_on_until_the_end_of_input(server: ServerProcess, client: Client) -> None:
    leader, follower = pty.openpty()
    command = [*ATLAS, "chat", "--session", "cli-talk", "--max-tokens", "4"]
    process = subprocess.Popen(
        command, env=environment(server.base_url), stdin=follower, stdout=subprocess.PIPE, stderr=follower, text=True
    )
    os.close(follower)
    os.write(leader, b"Hello.\n\nAnd then?\n\x04")
    output, _ = process.communicate(timeout=60)
    os.close(leader)
    assert process.returncode == 0
    assert output.count("\n") >= 2
    assert client.get_session("cli-talk").version == 2


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (9_999, "9,999 B"), (12_345, "12.3 kB"), (8_000_000, "8.0 MB")]
)
def test_sizes_are_shown_in_the_unit_that_fits(num_bytes: int, text: str) -> None:
    assert describe_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "just now"), (61, "1 minute ago"), (7300, "2 hours ago"), (86400 * 3, "3 days ago")]
)
def test_ages_are_shown_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert age(time.time() - seconds) == text

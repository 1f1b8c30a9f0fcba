"""Keys in a file: what a line may be, who makes it, and that a server goes on while it is read again."""

import os
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.__main__ import main as serve
from server.access.auth import ApiKeys, RateLimits, Scope, key_digest
from server.access.keys_file import KeyRing, KeysFileError, keys_file_line, parse_holder, read_keys_file
from server.keys import main as make_key
from tests.server.forked import ForkedServer, Forker
from tests.server.harness import ask, assert_refused, until

DIGEST = "sha256:" + "0f" * 32
SHORT_KEY = "x" * 31


def made_key(capsys: pytest.CaptureFixture[str], path: Path, *arguments: str) -> str:
    """A new key whose line is in the file."""
    assert make_key(["new", "--file", str(path), *arguments]) == 0
    return capsys.readouterr().out.strip()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def status_with(server: ForkedServer, key: str) -> int:
    return server.client.get("/v1/models", headers=bearer(key)).status_code


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.txt"


@pytest.fixture
def server(
    forker: Forker, model: Path, tmp_path: Path, keys_file: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[tuple[ForkedServer, str]]:
    """A process, and the one key of its file."""
    key = made_key(capsys, keys_file, "--tenant", "acme")
    settings = {"model": str(model), "store": "memory://", "api_keys_file": str(keys_file), "log_level": "info"}
    with ForkedServer(forker, tmp_path, **settings) as running:
        yield running, key


def test_a_key_is_printed_once_and_its_line_opens_with_it(capsys: pytest.CaptureFixture[str], keys_file: Path) -> None:
    assert make_key(["new", "--tenant", "acme", "--scope", "user", "--scope", "metrics"]) == 0
    key, line = capsys.readouterr().out.splitlines()
    assert key not in line
    keys_file.write_text(line)
    found = ApiKeys(read_keys_file(keys_file)).find(b"Bearer " + key.encode())
    assert found is not None
    assert (found.tenant, set(found.scopes)) == ("acme", {Scope.USER, Scope.METRICS})
    assert make_key(["new"]) == 0
    assert capsys.readouterr().out.splitlines()[0] != key


def test_a_key_may_have_limits_of_its_own(capsys: pytest.CaptureFixture[str], keys_file: Path) -> None:
    key = made_key(capsys, keys_file, "--requests-per-minute", "60", "--tokens-per-minute", "9000")
    found = ApiKeys(read_keys_file(keys_file)).find(b"Bearer " + key.encode())
    assert found is not None
    assert found.limits == RateLimits(requests_per_minute=60, tokens_per_minute=9000)


def test_a_file_that_is_made_is_its_owners_alone_and_grows_by_whole_lines(
    capsys: pytest.CaptureFixture[str], keys_file: Path
) -> None:
    first = made_key(capsys, keys_file)
    assert stat.S_IMODE(keys_file.stat().st_mode) == 0o600
    # As an editor may leave it.
    keys_file.write_text(keys_file.read_text().rstrip("\n"))
    second = made_key(capsys, keys_file, "--scope", "admin")
    keys = ApiKeys(read_keys_file(keys_file))
    found = [keys.find(f"Bearer {key}".encode()) for key in (first, second)]
    assert [key and set(key.scopes) for key in found] == [{Scope.USER}, {Scope.ADMIN}]
    assert first not in keys_file.read_text()


@pytest.mark.parametrize(
    "arguments", [["--tenant", "bad tenant"], ["--scope", "root"], ["--scope", ""], ["--tokens-per-minute", "0"]]
)
def test_a_key_for_nobody_or_for_nothing_is_not_made(
    capsys: pytest.CaptureFixture[str], keys_file: Path, arguments: list[str]
) -> None:
    assert make_key(["new", "--file", str(keys_file), *arguments]) == 2
    assert capsys.readouterr().out == ""
    assert not keys_file.exists()


def test_comments_and_empty_lines_are_nothing(keys_file: Path) -> None:
    keys_file.write_text(f"# who has which\n\n  {DIGEST}\tacme  user,admin # the night shift\n")
    (key,) = read_keys_file(keys_file)
    assert (key.digest, key.tenant, set(key.scopes)) == (b"\x0f" * 32, "acme", {Scope.USER, Scope.ADMIN})


@pytest.mark.parametrize(
    "line",
    [
        "",
        "# only a comment",
        DIGEST,
        f"{DIGEST} acme",
        f"{DIGEST} acme user more",
        f"{DIGEST} acme user requests_per_minute=0",
        f"{DIGEST} acme user requests_per_minute=1 requests_per_minute=2",
        f"{DIGEST} acme user tokens=1",
        f"{DIGEST} acme root",
        f"{DIGEST} acme user,",
        f"{DIGEST} a/b user",
        f"{DIGEST.upper()} acme user",
        f"{DIGEST[:-1]} acme user",
        "secret-key-in-plain acme user",
        f"{DIGEST} acme user\n{DIGEST} globex user",
        b"\xff\xfe",
    ],
)
def test_a_file_that_is_no_list_of_keys_is_refused_without_what_it_holds(keys_file: Path, line: str | bytes) -> None:
    keys_file.write_bytes(line if isinstance(line, bytes) else line.encode())
    with pytest.raises(KeysFileError) as refused:
        read_keys_file(keys_file)
    assert str(keys_file) in str(refused.value)
    assert "secret-key" not in str(refused.value)
    assert "0f0f" not in str(refused.value)


def test_a_short_key_is_never_accepted_from_a_file(keys_file: Path) -> None:
    holder = "acme user"
    for key, is_accepted in ((SHORT_KEY, False), (SHORT_KEY + "x", True)):
        keys_file.write_text(f"sha256:{key_digest(key.encode()).hex()} {holder}\n")
        found = ApiKeys(read_keys_file(keys_file)).find(b"Bearer " + key.encode())
        assert (found is not None) is is_accepted


def test_a_file_that_others_may_read_is_warned_of(keys_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys_file.write_text(f"{DIGEST} acme user\n")
    keys_file.chmod(0o600)
    read_keys_file(keys_file)
    assert caplog.messages == []
    keys_file.chmod(0o640)
    read_keys_file(keys_file)
    assert "chmod 600" in caplog.messages[0]


def test_keys_of_the_environment_stay_beside_those_of_the_file(keys_file: Path) -> None:
    keys_file.write_text(f"{DIGEST} acme user\n")
    ring = KeyRing(ApiKeys.parse("ops:in-the-environment"), keys_file)
    assert ring.current.tenants == {"acme", "ops"}
    keys_file.write_text(keys_file_line(parse_holder("globex", "user")).replace("sha256:", DIGEST) + "\n")
    ring.reload()
    assert ring.current.tenants == {"globex", "ops"}


def test_a_file_that_cannot_be_used_at_the_start_stops_the_process(
    capsys: pytest.CaptureFixture[str], keys_file: Path
) -> None:
    for arguments in (["--store", "memory://"], ["--store", "memory://", "--host", "0.0.0.0"]):  # noqa: S104
        assert serve([*arguments, "--port", "0", "--api-keys-file", str(keys_file)], {}) == 2
        assert f"the keys file {keys_file} cannot be read" in capsys.readouterr().err


def test_keys_that_are_added_and_taken_away_are_so_at_the_signal(
    server: tuple[ForkedServer, str], keys_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running, old = server
    new = made_key(capsys, keys_file, "--tenant", "acme")
    assert (status_with(running, old), status_with(running, new)) == (200, 401)
    running.signal(signal.SIGHUP)
    until(lambda: status_with(running, new) == 200)
    keys_file.write_text(keys_file.read_text().splitlines()[1])
    running.signal(signal.SIGHUP)
    until(lambda: status_with(running, old) == 401)
    assert status_with(running, new) == 200


def test_a_file_that_is_broken_at_the_signal_changes_nothing_and_is_told(
    server: tuple[ForkedServer, str], keys_file: Path
) -> None:
    running, key = server
    whole = keys_file.read_text()
    for broken, reason in (("", "holds no key"), (whole + "nonsense\n", "line 2"), (None, "cannot be read")):
        keys_file.unlink()
        if broken is not None:
            keys_file.write_text(broken)
        running.signal(signal.SIGHUP)
        until(lambda reason=reason: reason in running.log)
        assert status_with(running, key) == 200
        keys_file.touch()
    assert running.log.count("the keys stay as they were") == 3
    assert key not in running.log


def test_no_request_is_dropped_while_the_keys_are_read_again(server: tuple[ForkedServer, str]) -> None:
    running, key = server
    statuses: list[int] = []
    is_over = threading.Event()

    def ask_on() -> None:
        with httpx.Client(base_url=running.client.base_url, headers=bearer(key), timeout=60) as client:
            while not is_over.is_set():
                statuses.append(ask(client, "a", session_id="s").status_code)

    asking = threading.Thread(target=ask_on)
    asking.start()
    for number in range(20):
        os.kill(running.pid, signal.SIGHUP)
        until(lambda number=number: len(statuses) > number)
    is_over.set()
    asking.join()
    assert set(statuses) == {200}
    assert_refused(running.client.get("/v1/models"), 401, "invalid_api_key")

"""Server processes that can be killed and are back in milliseconds.

One helper process imports everything once and forks a server each time it is asked: a real process with a `main` of its
own, a real socket and a real store, that `kill -9` ends like any other. Run as a program, this file is that helper.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from bench.server_process import find_free_port
from server.__main__ import main

START_SECONDS = 60.0


class Forker:
    """The helper process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.server.forked"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def fork(self, request: Mapping[str, Any]) -> int:
        """The process id of a new server."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(START_SECONDS)


class ForkedServer:
    """`ATLAS_*` settings without the prefix, in lower case. The port stays the same over restarts."""

    def __init__(self, forker: Forker, folder: Path, **settings: str) -> None:
        self._forker = forker
        self._log_path = folder / "server.log"
        self.port = find_free_port()
        values = {"port": str(self.port), "threads": "1", **settings}
        self._environment = {f"ATLAS_{name.upper()}": value for name, value in values.items()}
        self._pid: int | None = None
        # Survives the server's restarts: what was connected before fails once, like any client's.
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    @property
    def log(self) -> str:
        return self._log_path.read_text(encoding="utf-8")

    def start(self) -> Self:
        self.launch()
        self.wait_ready()
        return self

    def launch(self, **settings: str) -> None:
        """Start and do not wait. `settings` are for this process alone."""
        assert not self.is_running
        more = {f"ATLAS_{name.upper()}": value for name, value in settings.items()}
        self._pid = self._forker.fork({"environment": {**self._environment, **more}, "log": str(self._log_path)})

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.answers("/ready"):
            assert self.is_running, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def answers(self, path: str) -> bool:
        try:
            return self.client.get(path).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    @property
    def is_running(self) -> bool:
        if self._pid is None:
            return False
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return False
        return True

    @property
    def pid(self) -> int:
        assert self._pid is not None
        return self._pid

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait_end(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self.is_running:
            assert time.monotonic() < deadline, "the server did not end"
            time.sleep(0.005)
        self._pid = None

    def kill9(self) -> None:
        """Harmless when it is gone already."""
        if self.is_running:
            self.signal(signal.SIGKILL)
            self.wait_end()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill9()
        self.client.close()


def _fork_servers() -> None:
    # Children are reaped by the kernel: nobody waits for them here.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become_server(request)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
    os._exit(0)


def _become_server(request: Mapping[str, Any]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for standard in (1, 2):
        os.dup2(log, standard)
    status = main([], request["environment"])
    sys.stdout.write(f"exit {status}\n")
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    _fork_servers()

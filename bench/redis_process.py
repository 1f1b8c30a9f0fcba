"""A Redis for a bench: the one at a URL, or one of our own that ends with the bench and keeps nothing."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.server_process import HOST, find_free_port

START_SECONDS = 10.0


@contextmanager
def redis_at(url: str | None) -> Iterator[str]:
    """The URL, or that of a redis-server of our own on a free port. Raises SystemExit when none is installed."""
    if url is not None:
        yield url
        return
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("bench: redis-server is not installed; give --redis URL")
    port = find_free_port()
    with tempfile.TemporaryDirectory(prefix="atlas-bench-redis-") as folder:
        command = [program, "--port", str(port), "--bind", HOST, "--save", "", "--appendonly", "no", "--dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            _wait_until_open(process, port)
            yield f"redis://{HOST}:{port}/0"
        finally:
            process.kill()
            process.wait()


def _wait_until_open(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection((HOST, port), timeout=1.0).close()
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("bench: redis-server did not start") from error
            time.sleep(0.02)

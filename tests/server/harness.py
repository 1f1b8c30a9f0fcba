"""A whole server in a thread of the test's process: real uvicorn, real sockets, and no second import of torch.

What has to be killed, or has to fail at its start, is tried with real processes (`tests.server.forked`, and
`tests.server_process`).
"""

import asyncio
import itertools
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import httpx
from openai import OpenAI

from server.__main__ import DrainingServer
from server.config import ServerConfig
from server.runtime import Runtime
from tests.tiny import TINY_MEMORY, save_tiny_checkpoint, tiny_config

START_SECONDS = 60.0
T = TypeVar("T")
_names = itertools.count()


def new_name(prefix: str = "s") -> str:
    """A session id that no other test uses."""
    return f"{prefix}-{next(_names)}"


def tiny_folder(folder: Path, **memory: Any) -> Path:
    """A checkpoint folder with the tiny model in it, made once per folder; `memory`: fields of its MemoryConfig."""
    directory = folder / "atlas-tiny"
    if not directory.exists():
        save_tiny_checkpoint(directory, tiny_config(memory=replace(TINY_MEMORY, **memory)))
    return directory


class ThreadedServer:
    """`ATLAS_*` settings without the prefix, in lower case. The port is free, the store `memory://` unless given."""

    def __init__(self, model: Path, **settings: str) -> None:
        values = {"model": str(model), "port": "0", "store": "memory://", "log_level": "warning", **settings}
        self.config = ServerConfig.build([], {f"ATLAS_{name.upper()}": value for name, value in values.items()})
        self._thread = threading.Thread(target=self._run, name="server")
        self._server: DrainingServer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None

    def start(self) -> "ThreadedServer":
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while self._server is None or not self._server.started or not self.runtime.loaded.is_set():
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the server did not start") from self._failure
            time.sleep(0.01)
        return self

    @property
    def runtime(self) -> Runtime:
        assert self._server is not None
        return self._server.runtime

    @property
    def listener(self) -> socket.socket:
        assert self._server is not None
        return self._server.servers[0].sockets[0]

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def num_slots_in_use(self) -> int:
        return self.runtime.serving().engine.stats().num_slots_in_use

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the server's own loop."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_SECONDS)

    def terminate(self) -> None:
        """What SIGTERM does; does not wait."""
        assert self._server is not None
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._server.handle_exit, signal.SIGTERM, None)

    def join(self) -> int:
        """Waits for the end; the exit status."""
        self._thread.join(START_SECONDS)
        assert not self._thread.is_alive(), "the server did not end"
        assert self._server is not None
        return self._server.exit_status

    def stop(self) -> None:
        """Twice is safe."""
        if self._thread.is_alive():
            self.terminate()
            self.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            # Boundary of the thread: `start` tells it.
            self._failure = error

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = DrainingServer(self.config)
        await server.runtime.open_store()
        self._server = server
        await server.serve()


@contextmanager
def serving(model: Path, **settings: str) -> Iterator[ThreadedServer]:
    server = ThreadedServer(model, **settings).start()
    try:
        yield server
    finally:
        server.stop()


def sdk(base_url: str, **options: Any) -> Any:
    """The stock library. Its types know the models of one vendor and none of our fields."""
    return OpenAI(**{"base_url": f"{base_url}/v1", "api_key": "unused", "max_retries": 0, **options})


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def ask(client: httpx.Client, text: str, headers: Mapping[str, str] | None = None, **fields: Any) -> httpx.Response:
    """One greedy turn of a few tokens."""
    body = {"messages": [user(text)], "max_tokens": 4, "temperature": 0, **fields}
    return client.post("/v1/chat/completions", json=body, headers=headers)


def session_of(client: httpx.Client, session_id: str) -> dict[str, Any]:
    response = client.get(f"/v1/sessions/{session_id}")
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def metric_value(exposition: str, name: str) -> float:
    """`name` without the prefix, with labels if it has some."""
    found = re.search(rf"^atlas_{re.escape(name)} ([\d.e+-]+)$", exposition, re.MULTILINE)
    assert found, f"{name} is not there"
    return float(found[1])


def assert_refused(response: httpx.Response, status: int, code: str, param: str | None = None) -> None:
    """The one shape of errors, and nothing beside it but what API.md adds."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    error = body["error"]
    assert error["code"] == code, error
    assert error["param"] == param, error
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    assert set(error) <= {"message", "type", "param", "code", "expected_offset", "last_whole_version"}
    assert response.headers["x-request-id"]


def events_of(response: httpx.Response) -> list[Any]:
    """The data of a whole event stream; `[DONE]` stays a string."""
    assert response.headers["content-type"] == "text/event-stream"
    lines = response.text.split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") for line in lines)
    data = [line.removeprefix("data: ") for line in lines]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


@contextmanager
def open_stream(port: int, text: str, fields: Mapping[str, Any]) -> Iterator[socket.socket]:
    """A turn on a socket of its own, for clients that hang up or do not read."""
    body = json.dumps({"messages": [user(text)], **fields}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        yield connection


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    """What a socket says until it has said `mark`."""
    said = b""
    while mark not in said:
        piece = connection.recv(4096)
        assert piece, said
        said += piece
    return said


def raw_answer(port: int, request: bytes) -> bytes:
    """All that a server says to bytes that need not be a request, up to where it hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
    return answer


def until(condition: Any, seconds: float = 20.0) -> None:
    """Waits for what happens in another thread or process."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)

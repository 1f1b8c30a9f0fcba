"""The log: a line a request with what operators need, everything in one format, and never what clients say."""

import asyncio
import gc
import json
import logging
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from engine.errors import StoreUnavailable
from server.logs import FORMATTERS, JsonFormatter, TextFormatter
from tests.server.forked import ForkedServer, Forker
from tests.server.harness import ThreadedServer, ask, open_stream, raw_answer, read_until, serving, until

SECRET = "zebrafish"
ENDLESS: dict[str, Any] = {"max_tokens": 30_000, "ignore_eos": True}


# The test's own client logs what it sends.
CLIENT_LOGGERS = ("httpcore", "httpx")


class Listener(logging.Handler):
    """Every line of every logger of the server at every level, in both formats."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.requests: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(CLIENT_LOGGERS):
            return
        self.lines += [formatter().format(record) for formatter in FORMATTERS.values()]
        if record.name == "server.requests" and record.getMessage() == "request":
            self.requests.append(json.loads(JsonFormatter().format(record)))

    def request(self, number: int) -> dict[str, Any]:
        """A request's line, once it is there: it is written when the answer has gone."""
        until(lambda: len(self.requests) > number)
        return self.requests[number]


@pytest.fixture
def log() -> Iterator[Listener]:
    listener, root = Listener(), logging.getLogger()
    level = root.level
    root.addHandler(listener)
    root.setLevel(logging.DEBUG)
    try:
        yield listener
    finally:
        root.removeHandler(listener)
        root.setLevel(level)


@pytest.mark.parametrize("stream", [True, False])
def test_a_turn_leaves_a_line_with_its_tokens_and_times_and_without_its_words(
    client: httpx.Client, session_id: str, log: Listener, stream: bool
) -> None:
    ask(client, "a", session_id=session_id)
    response = ask(client, SECRET, session_id=session_id, ignore_eos=True, stream=stream)
    log.request(0)
    line = log.request(1)
    assert line.pop("time").endswith("Z")
    assert 0 <= line.pop("queue_seconds") < line.pop("first_token_seconds") < line.pop("seconds") < 60
    assert line.pop("cached_tokens") > 0
    assert line.pop("prompt_tokens") > len(SECRET) / 4
    assert line == {
        "level": "info",
        "logger": "server.requests",
        "message": "request",
        "request_id": response.headers["x-request-id"],
        "client": "127.0.0.1",
        "tenant": "default",
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "session": True,
        "stream": stream,
        "completion_tokens": 4,
        "finish_reason": "length",
    }
    assert not [line for line in log.lines if SECRET in line or session_id in line]


def test_a_refusal_leaves_its_code_and_no_path(client: httpx.Client, session_id: str, log: Listener) -> None:
    client.get(f"/v1/sessions/{session_id}")
    client.get(f"/{SECRET}/{session_id}")
    ask(client, "a", session_id=session_id, history="match", stream=True)
    found = [(line["route"], line["status"], line["code"]) for line in (log.request(each) for each in range(3))]
    assert found == [
        ("/v1/sessions/{session_id}", 404, "session_not_found"),
        ("none", 404, "not_found"),
        ("/v1/chat/completions", 409, "session_diverged"),
    ]
    assert not [line for line in log.lines if SECRET in line or session_id in line]


def test_a_document_leaves_how_long_it_is(client: httpx.Client, session_id: str, log: Listener) -> None:
    document = client.post(f"/v1/sessions/{session_id}/ingest", json={"text": f"{SECRET} " * 100}).json()
    assert log.request(0).items() >= {"document_tokens": document["tokens"], "session": True, "status": 200}.items()
    assert not [line for line in log.lines if SECRET in line]


@pytest.mark.parametrize("fields", [{"stream": True}, {"stream": False}, {"stream": False, "n": 2}])
def test_who_leaves_leaves_a_line_with_what_was_read_and_written_for_him(
    server: ThreadedServer, log: Listener, fields: dict[str, Any]
) -> None:
    with open_stream(server.port, SECRET, {**ENDLESS, **fields}) as connection:
        if fields["stream"]:
            read_until(connection, b"data: ")
        else:
            until(lambda: server.runtime.serving().engine.stats().num_running > 0)
            before = server.runtime.serving().engine.stats().generation_tokens_total
            until(lambda: server.runtime.serving().engine.stats().generation_tokens_total > before + 10)
    line = log.request(0)
    assert line["finish_reason"] == "abort"
    assert line["status"] == (200 if fields["stream"] else 499)
    assert line["prompt_tokens"] > len(SECRET) / 4
    assert line["completion_tokens"] > 0
    assert "session" not in line
    assert not [line for line in log.lines if SECRET in line]


def test_who_leaves_while_his_prompt_is_read_leaves_how_far_that_came(model: Path, log: Listener) -> None:
    with serving(model, max_num_batched_tokens="16") as server:
        with open_stream(server.port, "so long a word " * 20_000, {"stream": True}):
            until(lambda: server.runtime.serving().engine.stats().prompt_tokens_total > 100)
        line = log.request(0)
        until(lambda: server.num_slots_in_use == 0)
        assert line.items() >= {"finish_reason": "abort", "completion_tokens": 0}.items()
        num_read = server.runtime.serving().engine.stats().prompt_tokens_total
        # The step that runs when he leaves is counted by the engine and not here.
        assert 100 < line["prompt_tokens"] <= num_read <= line["prompt_tokens"] + 3 * 16


def test_no_failure_puts_what_was_said_into_the_log(model: Path, log: Listener) -> None:
    """The exceptions that quote what they choke on are the ones nobody foresaw."""

    def refuse(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Embedding):
            try:
                raise KeyError(SECRET)
            except KeyError as error:
                raise ValueError(f"cannot read {SECRET}") from error

    with ExitStack() as hooks, serving(model) as server, httpx.Client(base_url=server.base_url, timeout=60) as client:
        broken = hooks.enter_context(ExitStack())
        broken.callback(register_module_forward_pre_hook(refuse).remove)
        for fields in ({"stream": True}, {"stream": False}, {"n": 2}, {"session_id": "s"}):
            assert ask(client, SECRET, **fields).json()["error"]["code"] == "internal_error"
        assert client.post("/v1/sessions/s/ingest", content=SECRET.encode()).status_code == 500
        broken.close()
        for raw in (f'{{"messages": "{SECRET}', f'{{"messages": [{{"role": "{SECRET}"}}]}}', f"[{SECRET}]"):
            client.post("/v1/chat/completions", content=raw, headers={"Content-Type": "application/json"})
        client.post(f"/v1/sessions/{SECRET}%00/ingest", params={"document_id": f"{SECRET}!"}, content=b"a")
        client.get("/v1/sessions/a/export", params={"version": SECRET}, headers={"If-Match": SECRET})
        ask(client, "a", {"Idempotency-Key": f"{SECRET} {SECRET}"}, stop=[SECRET] * 17, session_id=SECRET)
        raw_answer(server.port, f"{SECRET} / HTTP/9.9\r\n\r\n".encode())

        async def fail() -> None:
            raise ValueError(SECRET)

        async def forget() -> None:
            task = asyncio.ensure_future(fail())
            await asyncio.sleep(0.01)
            del task
            gc.collect()

        server.call(forget())
        until(lambda: any("never retrieved" in line for line in log.lines))
    assert len([line for line in log.lines if "builtins.ValueError" in line]) >= 2 * 5
    assert not [line for line in log.lines if SECRET in line]


def test_a_traceback_has_the_code_and_of_a_message_only_what_quotes_nothing() -> None:
    def told(error: Exception) -> str:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": (type(error), error, error.__traceback__)})
        text: str = json.loads(JsonFormatter().format(record))["traceback"]
        assert TextFormatter().format(record).endswith(f"failed\n{text}")
        return text

    try:
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise StoreUnavailable("the store does not answer") from error
    except StoreUnavailable as error:
        lines = told(error).splitlines()
    assert "raise KeyError(SECRET)" in lines[1]
    assert lines[2:4] == ["builtins.KeyError", "which led to"]
    assert lines[-1] == "engine.errors.StoreUnavailable: the store does not answer"
    assert told(OSError(28, "No space left on device", f"/{SECRET}")) == "builtins.OSError: No space left on device"
    assert told(RuntimeError("shapes 3x4 and 5x6")) == "builtins.RuntimeError: shapes 3x4 and 5x6"
    group = ExceptionGroup(SECRET, [ValueError(SECRET), RuntimeError("b")])
    assert told(group) == "builtins.ExceptionGroup\nbuiltins.ValueError\nbuiltins.RuntimeError: b"


def test_every_line_of_a_process_is_json_from_its_start_to_its_end(forker: Forker, model: Path, tmp_path: Path) -> None:
    settings = {"model": str(model), "store": "memory://", "log_level": "debug"}
    with ForkedServer(forker, tmp_path, **settings) as server:
        ask(server.client, SECRET, session_id="s", user=f"u\n{SECRET[:3]}").raise_for_status()
        raw_answer(server.port, b"no request\r\n\r\n")
        with open_stream(server.port, SECRET, ENDLESS):
            pass
        server.signal(signal.SIGTERM)
        server.wait_end()
        *lines, end = server.log.splitlines()
    assert end == "exit 0"
    told = [json.loads(line) for line in lines]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in told)
    assert {line["logger"] for line in told} >= {"server", "server.requests", "uvicorn.error"}
    assert {line["message"] for line in told} >= {"listening", "request", "Invalid HTTP request received."}
    # Machines ask for these: at every other level they leave no line.
    assert {line["level"] for line in told if line.get("route") == "/ready"} == {"debug"}
    assert SECRET not in server.log


def test_a_process_that_cannot_serve_says_so_in_json(forker: Forker, model: Path, tmp_path: Path) -> None:
    server = ForkedServer(forker, tmp_path, model=str(tmp_path), store="memory://")
    server.launch()
    server.wait_end()
    server.client.close()
    *lines, end = server.log.splitlines()
    assert end == "exit 1"
    assert [line["message"] for line in map(json.loads, lines) if line["level"] == "critical"] == [
        f"cannot serve the model in {tmp_path}: {tmp_path} is not a checkpoint: it has no config.json"
    ]


def test_people_may_read_the_same_as_text(forker: Forker, model: Path, tmp_path: Path) -> None:
    with ForkedServer(forker, tmp_path, model=str(model), store="memory://", log_format="text") as server:
        ask(server.client, SECRET)
        until(lambda: "server.requests request" in server.log)
        lines = server.log.splitlines()
    assert [line for line in lines if line.startswith("atlas-serve listening on http://")]
    (line,) = (line for line in lines if "server.requests" in line)
    time, level, name, message, fields = line.split(" ", 4)
    assert (level, name, message) == ("INFO", "server.requests", "request")
    assert time.endswith("Z")
    assert json.loads(fields)["completion_tokens"] == 4

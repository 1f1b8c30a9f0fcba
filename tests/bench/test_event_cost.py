"""What an event costs: the bench as a whole, and what its profile says."""

from __future__ import annotations

import hashlib
import json
import signal
import sys
import time
from pathlib import Path

import pytest

from bench import report
from bench.stack_samples import Frame
from bench.wire.bare_server import num_events_of
from bench.wire.interrupts import Interrupts
from bench.wire.stages import OTHER, STAGES, WAITING, stage_of
from tests.bench.running import run

needs_linux = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processor time by thread needs Linux")


@needs_linux
def test_an_event_of_each_server_is_counted_and_ours_by_stage(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--concurrency", "3", "--max-tokens", "60", "--interval", "0.004", "--rounds", "2", "--profile-rounds", "2"]
    path = tmp_path / "event_cost.json"
    document, printed = run(capsys, "event_cost", "--model", str(model), *size, "--json", str(path))
    for name in ("atlas", "asgi", "protocol"):
        cost = document[name]
        assert 1e-6 < cost["loop_seconds"] < 0.1
        assert 0 < cost["events_per_read"] < 60
    assert document["atlas"]["other_seconds"] > 0
    assert document["ratios"].keys() == {"asgi", "protocol"}
    assert sum(document["stages"].values()) == pytest.approx(1.0)
    assert {"socket write", "event loop"} <= document["stages"].keys()
    assert WAITING not in document["stages"]
    assert "the goal is 25 us" in printed
    assert [len(rounds) for rounds in json.loads(path.read_text())["rounds"].values()] == [2, 2, 2]


def compute(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def call(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        hashlib.pbkdf2_hmac("sha256", b"word", b"salt", 2000)


def rest(seconds: float) -> None:
    time.sleep(seconds)


def test_functions_are_met_as_often_as_they_last_whether_in_python_or_in_what_it_calls() -> None:
    before = signal.getsignal(signal.SIGALRM)
    interrupts = Interrupts(lambda stack: stack[0][1])
    interrupts.start()
    for _ in range(5):
        compute(0.04)
        call(0.04)
        rest(0.08)
    seconds = interrupts.stop()
    assert signal.getsignal(signal.SIGALRM) is before
    total = sum(seconds.values())
    assert 0.1 < total < 0.5
    assert seconds["compute"] / total == pytest.approx(0.5, abs=0.15)
    assert seconds["call"] / total == pytest.approx(0.5, abs=0.15)
    time.sleep(0.02)
    assert interrupts.stop() == seconds


def test_time_counts_for_the_innermost_stage() -> None:
    def ours(file: str, function: str) -> Frame:
        return str(report.ROOT / file), function

    write = ("/usr/lib/python3/asyncio/selector_events.py", "_SelectorSocketTransport.write")
    send = ("/venv/lib/site-packages/uvicorn/protocols/http/httptools_impl.py", "RequestResponseCycle.send")
    stream = ours("server/connections/streaming.py", "EventStream._send_all")
    step = ("/usr/lib/python3/asyncio/events.py", "Handle._run")
    assert stage_of([write, send, stream, step]) == "socket write"
    assert stage_of([send, stream, step]) == "uvicorn"
    assert stage_of([stream, step]) == "event stream"
    assert stage_of([ours("server/connections/streaming.py", "EventTemplate.filled"), stream, step]) == "event's text"
    assert stage_of([ours("engine/mailbox.py", "Mailbox.get"), stream, step]) == "engine's hand-over"
    assert stage_of([("/usr/lib/python3/selectors.py", "EpollSelector.select"), step]) == WAITING
    assert stage_of([("/usr/lib/python3/runpy.py", "run_module")]) == OTHER


def test_every_stage_is_of_code_that_exists() -> None:
    """A renamed file would have its time counted for its caller, silently."""
    roots = [report.ROOT, *(Path(path) for path in sys.path if path)]
    for place, _ in STAGES:
        path, _, function = place.partition(" ")
        found = [root / path for root in roots if (root / path).exists()]
        assert found, place
        assert not function or function.rpartition(".")[2] in found[0].read_text(encoding="utf-8"), place


def test_a_bare_answer_has_as_many_events_as_tokens_are_asked_for() -> None:
    assert num_events_of(b'{"max_tokens": 7}') == 7
    assert num_events_of(b"") == 0

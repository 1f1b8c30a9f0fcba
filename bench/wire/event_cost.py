"""`python -m bench event_cost`: what an event of one token costs the server's processor when the engine costs nothing.

Three servers send the same bytes to so many clients, each client one event a tick and each event by itself: ours with a
stub in place of the engine's core, a bare ASGI application under the same uvicorn, and asyncio alone. They take turns,
and the time counts in which all clients are in the middle of their answers: neither requests nor the load generator,
which is this process, are in it. The kernel's part, a system call for each event, is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from bench import report
from bench.process_times import ProcessTimes
from bench.server_process import HOST, ServerProcess
from bench.wire.pace import INTERVAL_VARIABLE
from bench.wire.readers import BEGINNING, Readers

STAGES_VARIABLE = "BENCH_STAGES"
GOAL_SECONDS = 25e-6
_NAMES = {"atlas": "Atlas Serve", "asgi": "uvicorn, bare application", "protocol": "asyncio alone"}


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one event, in processor seconds: of the event loop's thread, and of the others, which is mostly the stub's.
    events_per_read: 1 when every event arrives by itself, more when readers are late."""

    loop_seconds: float
    other_seconds: float
    events_per_read: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--concurrency", type=int, default=64, help="streaming clients at once")
    parser.add_argument("--max-tokens", type=int, default=400, help="events per answer")
    parser.add_argument("--interval", type=float, default=0.005, help="seconds between two events of an answer")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each server, after a first one")
    parser.add_argument("--profile-rounds", type=int, default=3, help="more turns of ours, to see where its time goes")
    report.add_model_argument(parser)
    report.add_json_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    with _servers(arguments) as (servers, stages_path):
        costs: dict[str, list[Cost]] = {name: [] for name in servers}
        for turn in range(arguments.rounds + 1):
            for name, server in servers.items():
                cost = asyncio.run(_round(server, arguments.concurrency, arguments.max_tokens))
                if turn:
                    costs[name].append(cost)
        stages = _stages(servers["atlas"], stages_path, arguments)
    medians = {name: _median(rounds) for name, rounds in costs.items()}
    ours = medians["atlas"].loop_seconds
    ratios = {
        name: median(cost.loop_seconds / floor.loop_seconds for cost, floor in zip(costs["atlas"], each, strict=True))
        for name, each in costs.items()
        if name != "atlas"
    }
    for name, cost in medians.items():
        print(
            f"{_NAMES[name]:<26} {1e6 * cost.loop_seconds:5.1f} us an event in the event loop, "
            f"{1e6 * cost.other_seconds:4.1f} us elsewhere, {cost.events_per_read:.2f} events a read"
        )
    compared = ", ".join(f"{ratio:.2f} x {_NAMES[name]}" for name, ratio in ratios.items())
    print(f"ours is {compared}; the goal is {1e6 * GOAL_SECONDS:.0f} us")
    for stage, share in stages.items():
        print(f"  {stage:<24} {share:6.1%} {1e6 * share * ours:6.1f} us")
    document: report.Json = {
        **report.header("event_cost"),
        "model": arguments.model.name,
        "concurrency": arguments.concurrency,
        "max_tokens": arguments.max_tokens,
        "interval_seconds": arguments.interval,
        "num_rounds": arguments.rounds,
        **{name: asdict(cost) for name, cost in medians.items()},
        "ratios": ratios,
        "stages": stages,
    }
    rounds = {name: [asdict(cost) for cost in each] for name, each in costs.items()}
    report.publish(document, {"rounds": rounds}, arguments.json)


@contextmanager
def _servers(arguments: argparse.Namespace) -> Iterator[tuple[Mapping[str, ServerProcess], Path]]:
    """By name, and where ours writes its stages."""
    with ExitStack() as stack:
        stages_path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="atlas-bench-"))) / "stages.json"
        pace = {INTERVAL_VARIABLE: str(arguments.interval)}
        ours = {
            "ATLAS_MODEL": str(arguments.model),
            "ATLAS_STORE": "memory://",
            "ATLAS_LOG_LEVEL": "warning",
            "ATLAS_MAX_NUM_SEQUENCES": str(arguments.concurrency),
            "ATLAS_THREADS": "1",
            STAGES_VARIABLE: str(stages_path),
        }
        atlas = stack.enter_context(ServerProcess({**pace, **ours}, module="bench.wire.stubbed_server"))
        event = asyncio.run(_event(atlas))
        bare = {
            kind: stack.enter_context(ServerProcess(pace, module="bench.wire.bare_server", arguments=(kind, event)))
            for kind in ("asgi", "protocol")
        }
        yield {"atlas": atlas, **bare}, stages_path


async def _event(server: ServerProcess) -> str:
    """An event in the middle of an answer of ours."""
    reader, writer = await asyncio.open_connection(HOST, server.port)
    writer.write(Readers(server.port, 1, 4).request)
    chunks = (await reader.read()).decode().split("\r\n")
    writer.close()
    return [chunk for chunk in chunks if chunk.startswith(BEGINNING.decode())][1]


async def _round(server: ServerProcess, concurrency: int, max_tokens: int, *, is_profiled: bool = False) -> Cost:
    readers = Readers(server.port, concurrency, max_tokens)
    async with readers:
        await readers.all_began
        if is_profiled:
            server.send_signal(signal.SIGUSR1)
        before, num_events, num_reads = ProcessTimes.of(server.pid), readers.num_events, readers.num_reads
        await readers.first_ended
        if is_profiled:
            server.send_signal(signal.SIGUSR1)
        spent = ProcessTimes.of(server.pid) - before
        num_events, num_reads = readers.num_events - num_events, readers.num_reads - num_reads
    return Cost(spent.main_seconds / num_events, spent.other_seconds / num_events, num_events / num_reads)


def _stages(server: ServerProcess, path: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """The stages' shares of the event loop's time, the largest first, together 1."""
    if not arguments.profile_rounds:
        return {}
    for _ in range(arguments.profile_rounds):
        path.unlink(missing_ok=True)
        asyncio.run(_round(server, arguments.concurrency, arguments.max_tokens, is_profiled=True))
    deadline = time.monotonic() + 10
    while not path.exists():
        if time.monotonic() > deadline:
            raise SystemExit("bench event_cost: the server did not tell its stages")
        time.sleep(0.01)
    shares: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return shares


def _median(costs: list[Cost]) -> Cost:
    return Cost(*(median(values) for values in zip(*(asdict(cost).values() for cost in costs), strict=True)))

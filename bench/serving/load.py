"""`python -m bench load`: latency and throughput under load, at one level of it or at several.

Closed loop (`--concurrency`): each stream sends its next request when the last one has ended. Open loop (`--rate`):
requests arrive at random moments, whatever becomes of the others. What they are is `load_workload`'s, sending them and
recording ticks is `runner`'s; every figure is computed from the ticks afterwards (`ticks`).
"""

from __future__ import annotations

import argparse
import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from bench import report
from bench.plot import draw_latencies, draw_throughput_latency
from bench.server_process import BenchServer, bench_server
from bench.serving.load_sessions import LoadSessions
from bench.serving.load_workload import KINDS_WITH_A_PAST, Kind, Workload, parse_shares
from bench.serving.runner import Runner
from bench.serving.server_metrics import scrape, session_costs
from bench.serving.ticks import LATENCIES, Limits, RequestTicks, latencies, summarise_load
from bench.summary import describe
from bench.workload import open_prompts, parse_counts, parse_length
from clients import AsyncClient

# Of an open loop that is not told how many.
DEFAULT_NUM_SESSIONS = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    levels = parser.add_mutually_exclusive_group()
    levels.add_argument("--concurrency", default="8", help="streams at once; several levels: 1,2,4")
    levels.add_argument("--rate", help="an open loop: requests a second, Poisson arrivals; several levels: 0.5,1,2")
    parser.add_argument("--duration", type=float, default=60.0, help="seconds of an open loop's arrivals")
    parser.add_argument("--requests", type=parse_length, default=4, help="requests of each stream of a closed loop")
    parser.add_argument("--warm-up", type=int, default=1, help="of a closed loop, before those, not recorded")
    parser.add_argument("--mix", default="chat=1", help="shares: chat=8,ingest=1,resume=2,read=1 (default: chat=1)")
    parser.add_argument("--prompt-tokens", type=parse_length, default="128", help="new tokens per request (1k = 1,000)")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens per answer; answers always have so many")
    parser.add_argument("--document-tokens", default="0", help="what each session has read before the run")
    parser.add_argument("--ingest-tokens", default="1k", help="what a request of the kind ingest reads")
    parser.add_argument("--stateless", action="store_true", help="no sessions")
    parser.add_argument(
        "--sessions", type=int, help=f"a pool that all share; default: one a stream, {DEFAULT_NUM_SESSIONS} with --rate"
    )
    parser.add_argument("--zipf", type=float, default=0.0, help="exponent of a session's popularity in the pool")
    parser.add_argument("--cold", action="store_true", help="kill and start our server between preparation and run")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="books for the prompts; default: generated prose")
    parser.add_argument("--store", metavar="URL", help="the store of our own server; default: a temporary local one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--goodput", nargs="*", default=[], metavar="NAME=SECONDS", help="limits for ttft, tpot, e2e, like ttft=0.5"
    )
    report.add_server_arguments(parser)
    report.add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    limits = _parse_limits(arguments.goodput)
    load = Load(arguments)
    levels: list[report.Json] = []
    ticks: list[report.Json] = []
    with bench_server(arguments.base_url, arguments.model, arguments.store) as server:
        for level in load.levels:
            records, costs = asyncio.run(load.run(server, level))
            if all(each.error is not None for each in records):
                reason = records[0].error if records else "nothing arrived in time"
                raise SystemExit(f"bench load: no request was answered: {reason}")
            _print(level, records)
            levels.append({**level, **summarise_load(records, limits), **costs})
            ticks += [{**level, **asdict(each)} for each in records]
            if arguments.plot is not None and len(load.levels) == 1:
                draw_latencies(latencies(records), arguments.plot)
    if arguments.plot is not None and len(levels) > 1:
        draw_throughput_latency(levels, arguments.plot)
    document = {
        **report.header("load"),
        "model": arguments.model.name,
        "mix": load.shares,
        "num_sessions": load.num_sessions,
        "zipf": arguments.zipf,
        "is_cold": arguments.cold,
        "prompt_num_tokens": load.prompt_num_tokens,
        "document_num_tokens": load.document_num_tokens,
        "max_tokens": arguments.max_tokens,
        "levels": levels,
    }
    report.publish(document, {"ticks": ticks}, arguments.json)


class Load:
    """What the arguments ask for. Raises SystemExit for what cannot be measured."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.prompt_num_tokens = arguments.prompt_tokens
        self.document_num_tokens = 0 if arguments.document_tokens == "0" else parse_length(arguments.document_tokens)
        try:
            self.shares = parse_shares(arguments.mix)
            self.levels: list[report.Json] = (
                [{"concurrency": each} for each in parse_counts(arguments.concurrency)]
                if arguments.rate is None
                else [{"rate": _positive(each)} for each in arguments.rate.split(",")]
            )
        except ValueError as error:
            raise SystemExit(f"bench load: {error}") from error
        if arguments.sessions is not None and arguments.sessions < 1:
            raise SystemExit("bench load: --sessions must be at least 1; --stateless is without any")
        self.num_sessions: int | None = arguments.sessions
        if arguments.rate is not None and self.num_sessions is None:
            self.num_sessions = DEFAULT_NUM_SESSIONS
        if arguments.stateless:
            if self.document_num_tokens or arguments.sessions or set(self.shares) != {Kind.CHAT}:
                raise SystemExit("bench load: --document-tokens, --sessions and --mix need sessions")
            self.num_sessions = 0
        if KINDS_WITH_A_PAST & set(self.shares) and not self.document_num_tokens:
            raise SystemExit("bench load: resume and read need --document-tokens, or there is nothing to go on with")
        if arguments.cold and arguments.base_url is not None:
            raise SystemExit("bench load: --cold needs a server of our own, not --base-url")
        self._text_of = open_prompts(arguments.model, arguments.corpus, arguments.seed)

    async def run(self, server: BenchServer, level: report.Json) -> tuple[list[RequestTicks], report.Json]:
        """Records, and what the server says that its sessions cost meanwhile. Sessions are made before and deleted
        after."""
        arguments = self._arguments
        workload = Workload(
            self.shares,
            self.num_sessions,
            arguments.zipf,
            self.prompt_num_tokens,
            parse_length(arguments.ingest_tokens),
            arguments.seed,
            f"load-{uuid.uuid4().hex[:8]}",
            self._text_of,
        )
        concurrency, rate = level.get("concurrency"), level.get("rate")
        warm, streams, arrivals = [], [], []
        if isinstance(concurrency, int):
            warm = workload.streams(concurrency, range(-arguments.warm_up, 0))
            streams = workload.streams(concurrency, range(arguments.requests))
        elif isinstance(rate, float):
            arrivals = workload.arrivals(rate, arguments.duration)
        tasks = [*arrivals, *(task for stream in (*warm, *streams) for task in stream)]
        sessions = LoadSessions(tasks, self.document_num_tokens, self._text_of)
        async with AsyncClient(server.base_url, arguments.api_key) as client:
            await sessions.prepare(client)
        if arguments.cold:
            with server.killed_and_started():
                pass
        async with AsyncClient(server.base_url, arguments.api_key) as client:
            runner = Runner(client, {"max_tokens": arguments.max_tokens, "ignore_eos": True})
            try:
                await runner.closed_loop(warm)
                before = scrape(server.base_url, arguments.api_key)
                records = await (runner.open_loop(arrivals) if arrivals else runner.closed_loop(streams))
                costs = session_costs(before, scrape(server.base_url, arguments.api_key))
            finally:
                await sessions.forget(client)
        return records, costs


def _print(level: Mapping[str, object], records: list[RequestTicks]) -> None:
    print(", ".join(f"{name} {value}" for name, value in level.items()))
    for name, values in latencies(records).items():
        figures = describe(values)
        if figures is not None:
            print(
                f"{name:>5}  mean {figures.mean:.4f}  median {figures.median:.4f}  std {figures.std:.4f}  "
                f"p90 {figures.p90:.4f}  p95 {figures.p95:.4f}  p99 {figures.p99:.4f} s  n={figures.n}"
            )


def _parse_limits(texts: list[str]) -> Limits:
    limits: Limits = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            limits[name] = float(value)
        except ValueError:
            name = ""
        if name not in LATENCIES:
            raise SystemExit(f"bench load: --goodput takes {', '.join(LATENCIES)} with seconds, like ttft=0.5: {text}")
    return limits


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(f"not a rate: {text!r}")
    return value

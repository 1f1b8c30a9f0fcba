"""`python -m bench latency`: one stateless request at a time, nothing else on the server: the first token and the gaps
after it, by the prompt's length. What waiting for others adds is `load`'s."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import asdict

from bench import report
from bench.server_process import bench_server
from bench.serving.load_workload import Kind, Task
from bench.serving.runner import Runner
from bench.serving.ticks import RequestTicks, summarise_load
from bench.workload import open_prompts, parse_counts
from clients import AsyncClient


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lengths", type=parse_counts, default="16,128,1k,8k", help="tokens per prompt")
    parser.add_argument("--requests", type=int, default=10, help="requests of each length, after one that warms up")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens per answer; answers always have so many")
    parser.add_argument("--seed", type=int, default=0)
    report.add_server_arguments(parser)
    report.add_json_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    text_of = open_prompts(arguments.model, None, arguments.seed)
    tasks = {
        length: [
            Task(number, Kind.CHAT, None, text_of(length, f"{length}/{number}"))
            for number in range(-1, arguments.requests)
        ]
        for length in arguments.lengths
    }
    rows: list[report.Json] = []
    ticks: list[report.Json] = []
    with bench_server(arguments.base_url, arguments.model, None) as server:
        for length in arguments.lengths:
            records = asyncio.run(_ask(server.base_url, arguments.api_key, tasks[length], arguments.max_tokens))
            row = {"prompt_num_tokens": length, **summarise_load(records, {})}
            if row["num_failed"] or row["num_refused"]:
                raise SystemExit(f"bench latency: {next(each.error for each in records if each.error)}")
            rows.append(row)
            ticks += [{"prompt_num_tokens": length, **asdict(each)} for each in records]
            print(f"{length:>8,} tokens  " + "  ".join(_median(row, name) for name in ("ttft", "itl", "e2e")))
    document = {
        **report.header("latency"),
        "model": arguments.model.name,
        "max_tokens": arguments.max_tokens,
        "lengths": rows,
    }
    report.publish(document, {"ticks": ticks}, arguments.json)


async def _ask(base_url: str, api_key: str | None, tasks: list[Task], max_tokens: int) -> list[RequestTicks]:
    """Records of all but the first."""
    async with AsyncClient(base_url, api_key) as client:
        runner = Runner(client, {"max_tokens": max_tokens, "ignore_eos": True})
        return (await runner.closed_loop([tasks]))[1:]


def _median(row: report.Json, name: str) -> str:
    figures = row[f"{name}_seconds"]
    return f"{name} -" if not isinstance(figures, dict) else f"{name} {1e3 * figures['median']:.2f} ms"

"""`python -m bench compare`: the same stateless chat load on our server and on another that speaks OpenAI's protocol.

Round by round, first ours and then the other one, so that the machine's mood meets both; a ratio is the median of the
rounds' own ratios, ours over the other's. A prompt has the same text for both, and is as long as our tokenizer says.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from bench import report
from bench.server_process import bench_server
from bench.serving.load_workload import Kind, Task
from bench.serving.runner import Runner
from bench.serving.ticks import RequestTicks, summarise_load
from bench.workload import open_prompts, parse_length
from clients import AsyncClient
from clients.protocol import ChatOptions

SERVERS = ("ours", "other")
# Of a round's summary: medians of latencies, then rates.
MEDIANS = ("ttft_seconds", "itl_seconds", "tpot_seconds", "e2e_seconds")
RATES = ("requests_per_second", "output_tokens_per_second")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--other-url", required=True, metavar="URL", help="the other server, with or without /v1")
    parser.add_argument("--other-model", metavar="NAME", help="its model's name; default: the first that it lists")
    parser.add_argument("--other-api-key", metavar="KEY")
    parser.add_argument("--concurrency", type=int, default=4, help="streams at once")
    parser.add_argument("--rounds", type=int, default=5, help="turns of ours and the other's, after a first one")
    parser.add_argument("--prompt-tokens", type=parse_length, default="128", help="tokens per prompt (1k = 1,000)")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens per answer, where the server has ignore_eos")
    parser.add_argument("--seed", type=int, default=0)
    report.add_server_arguments(parser)
    report.add_json_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    text_of = open_prompts(arguments.model, None, arguments.seed)
    rounds = [
        [
            [Task(number, Kind.CHAT, None, text_of(arguments.prompt_tokens, f"{number}/{stream}"))]
            for stream in range(arguments.concurrency)
        ]
        for number in range(-1, arguments.rounds)
    ]
    with bench_server(arguments.base_url, arguments.model, None) as server:
        records = asyncio.run(_run(server.base_url, arguments, rounds))
    for each in (each for server_rounds in records.values() for ticks in server_rounds for each in ticks):
        if each.error is not None:
            raise SystemExit(f"bench compare: {each.error}")
    table = ratios(*([summarise_load(ticks, {}) for ticks in records[name]] for name in SERVERS))
    print(f"{'':<26}{'ours':>12}{'other':>12}{'ratio':>8}")
    for name, row in table.items():
        print(f"{name:<26}" + "".join(f"{row[column]:>12.4f}" for column in SERVERS) + f"{row['ratio']:>8.3f}")
    document = {
        **report.header("compare"),
        "model": arguments.model.name,
        "concurrency": arguments.concurrency,
        "num_rounds": arguments.rounds,
        "prompt_num_tokens": arguments.prompt_tokens,
        "max_tokens": arguments.max_tokens,
        "compared": table,
    }
    ticks = [
        {"server": name, "round": number, **asdict(each)}
        for name in SERVERS
        for number, group in enumerate(records[name])
        for each in group
    ]
    report.publish(document, {"ticks": ticks}, arguments.json)


def ratios(ours: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Of two servers' summaries, round by round: medians over the rounds, and the median of the rounds' ratios. What a
    round does not have (gaps, when answers are of one token) is left out."""
    table = {}
    for name in (*MEDIANS, *RATES):
        pairs = [
            (_figure(mine, name), _figure(theirs, name))
            for mine, theirs in zip(ours, other, strict=True)
            if mine[name] is not None and theirs[name] is not None
        ]
        if pairs:
            table[name] = {
                "ours": median(mine for mine, _ in pairs),
                "other": median(theirs for _, theirs in pairs),
                "ratio": median(mine / theirs for mine, theirs in pairs),
            }
    return table


def _figure(summary: Mapping[str, Any], name: str) -> float:
    return float(summary[name]["median"] if name in MEDIANS else summary[name])


async def _run(
    base_url: str, arguments: argparse.Namespace, rounds: Sequence[Sequence[Sequence[Task]]]
) -> dict[str, list[list[RequestTicks]]]:
    """Records of each server, round by round, without the first round."""
    options: ChatOptions = {"max_tokens": arguments.max_tokens, "ignore_eos": True, "temperature": 0.0}
    records: dict[str, list[list[RequestTicks]]] = {name: [] for name in SERVERS}
    async with (
        AsyncClient(base_url, arguments.api_key) as ours,
        AsyncClient(arguments.other_url, arguments.other_api_key) as other,
    ):
        model = arguments.other_model or (await other.list_models())[0]
        runners = {"ours": Runner(ours, options), "other": Runner(other, {**options, "model": model})}
        for streams in rounds:
            for name, runner in runners.items():
                records[name].append(await runner.closed_loop(streams))
    return {name: each[1:] for name, each in records.items()}

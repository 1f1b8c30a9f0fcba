"""`python -m bench gpu_check`: all that needs a GPU, unattended, in under ten minutes; on a CPU the same, to try it.

Each part has a process and a share of the time of its own (`bench.gpu.parts`), and the file is written anew after each.
Exit status 1 when a part has not passed, 2 when there is no such device. It needs neither the server nor its packages.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from bench import report
from bench.gpu.parts import PartReport, Settings, run_part
from bench.workload import parse_counts, parse_length

# Part -> its share of the time. The last one has whatever is left.
PARTS = {
    "equality": 0.12,
    "answers": 0.10,
    "marked_tests": 0.15,
    "throughput": 0.10,
    "roofline": 0.10,
    "latency": 0.08,
    "copies": 0.04,
    "resume": 0.06,
    "long_prefill": 1.0,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda", help="what is compared with the CPU; cpu compares it with itself")
    report.add_model_argument(parser)
    parser.add_argument("--parts", default=",".join(PARTS), help="default: all, %(default)s")
    parser.add_argument("--budget-seconds", type=float, default=540.0, help="for all parts together")
    parser.add_argument("--batch-sizes", default="1,32,256", help="rows at once, for throughput and latency")
    parser.add_argument("--rounds", type=int, default=5, help="how often each figure is measured")
    parser.add_argument("--long-tokens", default="10m", help="length of the long text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", default=report.RESULTS / "gpu_check.json", help="default: %(default)s"
    )


def run(arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench gpu_check: torch sees no CUDA device here (--device cpu runs the same checks)", file=sys.stderr)
        raise SystemExit(2)
    names = arguments.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise SystemExit(f"bench gpu_check: --parts: there is no {unknown[0]!r}, only {', '.join(PARTS)}")
    document: report.Json = {
        **report.header("gpu_check"),
        "model": arguments.model.name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cuda": torch.version.cuda,
        "budget_seconds": arguments.budget_seconds,
    }
    deadline = time.monotonic() + arguments.budget_seconds
    reports: list[PartReport] = []
    for name in names:
        seconds = min(PARTS[name] * arguments.budget_seconds, deadline - time.monotonic())
        reports.append(run_part(name, f"bench.gpu.{name}:measure", _settings(arguments, seconds)))
        print(*reports[-1].lines(), sep="\n", flush=True)
        document["parts"] = [each.to_json() for each in reports]
        report.write(document, arguments.json)
    print(f"{sum(each.passed for each in reports)} of {len(reports)} parts passed")
    report.publish(document, {}, arguments.json)
    if not all(each.passed for each in reports):
        raise SystemExit(1)


def _settings(arguments: argparse.Namespace, seconds: float) -> Settings:
    try:
        batch_sizes = tuple(parse_counts(arguments.batch_sizes))
        long_num_tokens = parse_length(arguments.long_tokens)
    except ValueError as error:
        raise SystemExit(f"bench gpu_check: {error}") from error
    return Settings(
        model=arguments.model,
        device=arguments.device,
        batch_sizes=batch_sizes,
        num_rounds=arguments.rounds,
        long_num_tokens=long_num_tokens,
        seed=arguments.seed,
        seconds=seconds,
    )

"""`python -m bench store`: what a session's way to Redis and back costs. It looks inside the engine.

The demo's snapshot, and one of some hundred megabytes, each committed and resumed beside plain SET and GET of the same
bytes; and for the large one, how much host memory that takes and how long other clients of the same Redis wait.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace

import torch

from atlas_model.checkpoint import load_checkpoint
from atlas_model.config import AtlasConfig
from atlas_model.presets import PRESETS
from atlas_model.state import session_num_bytes
from bench import report
from bench.redis_process import redis_at
from bench.store.memory import FINGERPRINT, Pings, measure_memory
from bench.store.transfer import TransferCost, measure_transfer
from bench.workload import parse_length


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--redis", metavar="URL", help="a running Redis; without it, one of our own is started")
    parser.add_argument("--rounds", type=int, default=100, help="commits and resumes of the model's snapshot")
    parser.add_argument("--large", default="300m", help="bytes of the large snapshot (1m = 1,000,000)")
    parser.add_argument("--large-rounds", type=int, default=5, help="commits and resumes of the large snapshot")
    report.add_model_argument(parser)
    report.add_json_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(arguments.model)
    config, large = checkpoint.model.config, config_of_size(parse_length(arguments.large))
    costs: dict[str, dict[str, TransferCost]] = {"transfer": {}, "large_transfer": {}}
    for names in ("fresh", "same"):
        # A Redis of its own each: what one of them frees would be the other's warm memory.
        with redis_at(arguments.redis) as ours, redis_at(arguments.redis) as plain:
            is_fresh = names == "fresh"
            cost = measure_transfer((ours, plain), config, checkpoint.fingerprint, arguments.rounds, is_fresh)
            costs["transfer"][names] = cost
            print(f"{arguments.model.name:<16} {_describe(cost, names)}")
            cost = measure_transfer((ours, plain), large, FINGERPRINT, arguments.large_rounds, is_fresh)
            costs["large_transfer"][names] = cost
            print(f"{'large':<16} {_describe(cost, names)}")
    with redis_at(arguments.redis) as url:
        memory = measure_memory(url, large, arguments.large_rounds)
    print(f"idle             {_describe_pings(memory.idle_pings)}")
    print(f"commit, large    {memory.commit_ratio:.2f} of its size in memory; {_describe_pings(memory.commit_pings)}")
    print(f"load, large      {memory.load_ratio:.2f} of its size in memory; {_describe_pings(memory.load_pings)}")
    document: report.Json = {
        **report.header("store"),
        "model": arguments.model.name,
        **{name: {names: asdict(cost) for names, cost in each.items()} for name, each in costs.items()},
        "large_memory": asdict(memory),
    }
    report.publish(document, {}, arguments.json)


def config_of_size(num_bytes: int) -> AtlasConfig:
    """atlas-760m in float32, with as many layers as bring a session nearest to `num_bytes`."""
    base = replace(PRESETS["atlas-760m"], state_dtype="float32")
    one, two = (session_num_bytes(replace(base, num_layers=num_layers)) for num_layers in (1, 2))
    return replace(base, num_layers=max(1, 1 + round((num_bytes - one) / (two - one))))


def _describe(cost: TransferCost, names: str) -> str:
    return (
        f"{cost.snapshot_num_bytes:,} bytes: commit {1e3 * cost.commit_seconds:.2f} ms, resume "
        f"{1e3 * cost.resume_seconds:.2f} ms; SET under {names} names {1e3 * cost.set_seconds:.2f} ms, "
        f"GET {1e3 * cost.get_seconds:.2f} ms; ratio {cost.ratio:.2f}"
    )


def _describe_pings(pings: Pings) -> str:
    return f"PING {1e3 * pings.p99:.1f} ms (p99), {1e3 * pings.max:.1f} ms (max), n={pings.n}"

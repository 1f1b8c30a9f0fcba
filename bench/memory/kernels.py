"""`python -m bench kernels`: how near the chunk form comes to the machine's limit, rule by rule. Inside the model.

The limit is that of the matrix products alone: those that the chunk form makes are recorded and timed by themselves, in
turns with the whole. Share = (operations / rate of the products) / time; the rest is element-wise work and overhead.
The demo's memory is the first row (4 heads of 64, chunks of 16 tokens, degree-2 features, read by the chunk); every
other row differs from it in what its name says. Beside it stands the naive form, the tests' reference, on a short text.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median

import torch

from atlas_model import MemoryConfig
from atlas_model.memory import chunk, naive
from atlas_model.presets import DEMO
from atlas_model.sizes import memory_flops_per_token
from bench import report
from bench.clock import median_ratio, seconds_in_turns
from bench.memory.workload import MemoryWorkload
from bench.products import MatrixProducts
from bench.workload import parse_length

_DEMO = DEMO.memory
RULES: Mapping[str, MemoryConfig] = {
    "demo": _DEMO,
    "token read": replace(_DEMO, read_granularity="token"),
    "momentum": replace(_DEMO, max_momentum_decay=0.9),
    "token read, momentum, decay": replace(_DEMO, read_granularity="token", max_momentum_decay=0.9, retention="decay"),
    "omega window 8": replace(_DEMO, omega_window=8),
    "free step": replace(_DEMO, step="free"),
    "degree 1": replace(_DEMO, feature_degree=1),
    "mlp": replace(_DEMO, network="mlp"),
    "mlp, token read": replace(_DEMO, network="mlp", read_granularity="token"),
    "gated mlp": replace(_DEMO, network="gated_mlp"),
    "muon per chunk": replace(_DEMO, rule="muon", step="free"),
    "muon per token": replace(_DEMO, rule="muon", step="free", muon_granularity="token", read_granularity="token"),
}
_MUON_PER_TOKEN_DIVISOR = 8


@dataclass(frozen=True, slots=True)
class KernelShare:
    """seconds: median of a call of num_tokens; products_seconds: of its products alone; share: of the turns' ratios.

    formula_flops: what `atlas_model.sizes` says of the call. naive_ratio: naive seconds over chunk seconds, a token.
    """

    rule: str
    num_tokens: int
    num_products: int
    flops: int
    formula_flops: float
    seconds: float
    products_seconds: float
    share: float
    naive_seconds_per_token: float
    naive_ratio: float
    num_turns: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", type=int, default=DEMO.width, help="of all heads together")
    parser.add_argument("--length", type=parse_length, default=4096, help="tokens of a call")
    parser.add_argument("--chunk-size", type=int, default=_DEMO.memory_chunk_size, help="memory_chunk_size")
    parser.add_argument(
        "--rules", nargs="+", default=list(RULES), choices=RULES, metavar="NAME", help="rows to measure"
    )
    parser.add_argument("--naive-tokens", type=int, default=32, help="tokens of the naive form")
    parser.add_argument("--turns", type=int, default=7, help="how often each call is timed")
    parser.add_argument(
        "--threads", type=parse_length, default=2, help="torch's threads; as many idle cores are needed"
    )
    report.add_json_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    print(f"{'rule':<28} {'us/token':>9} {'GFLOP/s':>8} {'limit':>8} {'share':>6} {'naive':>8}")
    shares = []
    for name in arguments.rules:
        config = _resized(RULES[name], arguments.width, arguments.chunk_size)
        num_tokens = arguments.length
        if config.muon_granularity == "token":
            num_tokens = max(1, num_tokens // _MUON_PER_TOKEN_DIVISOR)
        share = measure(name, config, num_tokens, arguments.naive_tokens, arguments.turns)
        shares.append(share)
        print(
            f"{name:<28} {1e6 * share.seconds / share.num_tokens:>9.2f} {1e-9 * share.flops / share.seconds:>8.1f}"
            f" {1e-9 * share.flops / share.products_seconds:>8.1f} {share.share:>6.0%} {share.naive_ratio:>6,.0f} x",
            flush=True,
        )
    document: report.Json = {
        **report.header("kernels"),
        "width": arguments.width,
        "num_heads": _DEMO.num_heads,
        "memory_chunk_size": arguments.chunk_size,
        "num_threads": arguments.threads,
        "shares": [asdict(each) for each in shares],
    }
    report.publish(document, {}, arguments.json)


def _resized(config: MemoryConfig, width: int, chunk_size: int) -> MemoryConfig:
    head_width = width // config.num_heads
    return replace(
        config,
        key_width=head_width,
        value_width=head_width,
        feature_width=min(config.feature_width, head_width),
        memory_chunk_size=chunk_size,
    )


def measure(name: str, config: MemoryConfig, num_tokens: int, naive_tokens: int, num_turns: int) -> KernelShare:
    """The whole call and its products alone, in turns; then the naive form."""
    workload = MemoryWorkload.of(config, num_tokens)
    call = partial(chunk, workload.rule, workload.inputs, workload.state, workload.position)
    products = MatrixProducts.of(call)
    slow = MemoryWorkload.of(config, naive_tokens)
    slow_call = partial(naive, slow.rule, slow.inputs, slow.state, slow.position)
    with torch.inference_mode():
        whole, alone = seconds_in_turns([call, products.repeat], num_turns)
    (slow_seconds,) = seconds_in_turns([slow_call], 1)
    naive_seconds_per_token = slow_seconds[0] / naive_tokens
    return KernelShare(
        rule=name,
        num_tokens=num_tokens,
        num_products=products.num_calls,
        flops=products.flops,
        formula_flops=num_tokens * memory_flops_per_token(config),
        seconds=median(whole),
        products_seconds=median(alone),
        share=median_ratio(alone, whole),
        naive_seconds_per_token=naive_seconds_per_token,
        naive_ratio=naive_seconds_per_token * num_tokens / median(whole),
        num_turns=num_turns,
    )

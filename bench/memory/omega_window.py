"""`python -m bench omega_window`: what a longer Omega window costs in prefill and in decode. Inside the model.

The demo's memory by itself, one layer of it, with windows of c tokens; everything else of a layer costs the same for
every c. All windows are timed in turns, so that whatever else the machine does meets each of them; a ratio is the
median of the turns' own ratios to the first window.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median

import torch

from atlas_model.memory import chunk, recurrent
from atlas_model.presets import DEMO
from bench import report
from bench.clock import median_ratio, seconds_in_turns
from bench.memory.workload import MemoryWorkload
from bench.workload import parse_counts, parse_length


@dataclass(frozen=True, slots=True)
class WindowCost:
    """Seconds a token of one layer's memory, medians, and their ratios to those of the first window."""

    omega_window: int
    prefill_seconds: float
    prefill_ratio: float
    decode_seconds: float
    decode_ratio: float
    num_turns: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--windows",
        type=parse_counts,
        default="1,8,64",
        help="in tokens; the first is what others are held to",
    )
    parser.add_argument("--length", type=parse_length, default=4096, help="tokens of a prefill")
    parser.add_argument("--decode-tokens", type=parse_length, default=128, help="tokens decoded a turn")
    parser.add_argument("--turns", type=parse_length, default=9, help="how often each is timed")
    parser.add_argument(
        "--threads", type=parse_length, default=1, help="torch's threads; more of them need as many idle cores"
    )
    report.add_json_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    costs = measure(arguments.windows, arguments.length, arguments.decode_tokens, arguments.turns)
    print("medians; a ratio is the median of the turns' ratios to the first window")
    print(f"{'window':>6} {'prefill us/token':>17} {'ratio':>6} {'decode us/token':>16} {'ratio':>6}")
    for cost in costs:
        print(
            f"{cost.omega_window:>6} {1e6 * cost.prefill_seconds:>17.1f} {cost.prefill_ratio:>6.2f}"
            f" {1e6 * cost.decode_seconds:>16.0f} {cost.decode_ratio:>6.2f}"
        )
    document: report.Json = {
        **report.header("omega_window"),
        "memory": DEMO.memory.to_dict(),
        "num_threads": arguments.threads,
        "num_tokens": arguments.length,
        "costs": [asdict(each) for each in costs],
    }
    report.publish(document, {}, arguments.json)


@torch.inference_mode()
def measure(windows: list[int], length: int, decode_tokens: int, num_turns: int) -> list[WindowCost]:
    workloads = [MemoryWorkload.of(replace(DEMO.memory, omega_window=window), length) for window in windows]
    prefills = seconds_in_turns(
        [partial(chunk, each.rule, each.inputs, each.state, each.position) for each in workloads], num_turns
    )
    decodes = seconds_in_turns([partial(_decode, each, decode_tokens) for each in workloads], num_turns)
    return [
        WindowCost(
            omega_window=window,
            prefill_seconds=median(prefill) / length,
            prefill_ratio=median_ratio(prefill, prefills[0]),
            decode_seconds=median(decode) / decode_tokens,
            decode_ratio=median_ratio(decode, decodes[0]),
            num_turns=num_turns,
        )
        for window, prefill, decode in zip(windows, prefills, decodes, strict=True)
    ]


def _decode(workload: MemoryWorkload, num_tokens: int) -> None:
    state, position = workload.state, workload.position
    for at in range(num_tokens):
        _, state = recurrent(workload.rule, workload.tokens(at, at + 1), state, position)
        position = position + 1

"""`python -m bench capacity`: how many random pairs a memory holds, by key width, degree and depth. No training.

Pairs of random unit keys and values are written one by one with open gates, as a chunk of one token each, bounded, no
momentum, nothing forgotten. A pair is recalled when the value nearest to what its key reads, among all that were
written, is its own. The capacity is the largest number of pairs of which 90 % are recalled, found by doubling and
halving. One pass is what reading a text is; several say what the network could hold. Beside it stands the number of
features, O(d_k^p): the most pairs that a matrix can hold exactly (Atlas, section 3.1).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from atlas_model import MemoryConfig, NeuralMemory
from atlas_model.feature_map import num_features
from atlas_model.gates import Gates
from atlas_model.memory import MemoryInputs
from bench import report
from bench.plot import draw_capacity

RECALLED_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Capacity:
    """num_weights: numbers in the memory, which is what a session pays for. num_pairs: the median over the seeds."""

    network: str
    key_width: int
    feature_degree: int
    num_passes: int
    num_features: int
    num_weights: int
    num_pairs: int
    per_seed: tuple[int, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key-widths", default="8,16,32", help="d_k, which is also the values' width")
    parser.add_argument("--degrees", default="1,2,3", help="of the features; deep memories take the first two")
    parser.add_argument("--networks", default="matrix,mlp,gated_mlp")
    parser.add_argument("--passes", default="1,8", help="how often all pairs are written, one count after the other")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-pairs", type=int, default=8192, help="where the search ends")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    report.add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    key_widths, degrees, passes = (
        [int(item) for item in text.split(",")] for text in (arguments.key_widths, arguments.degrees, arguments.passes)
    )
    print(f"{'memory':<10} {'d_k':>4} {'degree':>6} {'passes':>6} {'features':>9} {'weights':>9} {'pairs':>7}")
    found = []
    for network in arguments.networks.split(","):
        for degree in degrees if network == "matrix" else degrees[:2]:
            for key_width in key_widths:
                for num_passes in passes:
                    config = capacity_config(network, key_width, degree)
                    capacity = measure(config, num_passes, arguments.seeds, arguments.max_pairs)
                    found.append(capacity)
                    print(
                        f"{network:<10} {key_width:>4} {degree:>6} {num_passes:>6} {capacity.num_features:>9,}"
                        f" {capacity.num_weights:>9,} {capacity.num_pairs:>7,}",
                        flush=True,
                    )
    if arguments.plot is not None:
        draw_capacity(_curves(found), arguments.plot)
    document: report.Json = {
        **report.header("capacity"),
        "num_threads": arguments.threads,
        "recalled_share": RECALLED_SHARE,
        "max_pairs": arguments.max_pairs,
        "capacities": [asdict(each) for each in found],
    }
    report.publish(document, {}, arguments.json)


def capacity_config(network: str, key_width: int, degree: int) -> MemoryConfig:
    """The paper's features, all of them: feature_width is d_k."""
    return MemoryConfig(
        num_heads=1,
        key_width=key_width,
        value_width=key_width,
        network=network,
        memory_chunk_size=1,
        feature_degree=degree,
        feature_width=key_width,
        feature_norm="unit",
        retention="none",
        max_momentum_decay=0.0,
    )


def measure(config: MemoryConfig, num_passes: int, num_seeds: int, max_pairs: int) -> Capacity:
    """The capacity, by search over the number of pairs."""
    per_seed = []
    for seed in range(num_seeds):
        torch.manual_seed(seed)
        memory = NeuralMemory(config).requires_grad_(False)
        per_seed.append(_largest(partial(recalled, memory, num_passes, seed), max_pairs))
    return Capacity(
        network=config.network,
        key_width=config.key_width,
        feature_degree=config.feature_degree,
        num_passes=num_passes,
        num_features=num_features(config),
        num_weights=sum(inputs * outputs for inputs, outputs in memory.network.shapes().values()),
        num_pairs=sorted(per_seed)[num_seeds // 2],
        per_seed=tuple(per_seed),
    )


@torch.inference_mode()
def recalled(memory: NeuralMemory, num_passes: int, seed: int, num_pairs: int) -> float:
    """Share of num_pairs random pairs whose own value is the nearest to what their key reads after all were written."""
    config = memory.config
    generator = torch.Generator().manual_seed(seed)
    keys = normalize(torch.randn(1, 1, num_pairs, config.key_width, generator=generator), dim=-1)
    values = normalize(torch.randn(1, 1, num_pairs, config.value_width, generator=generator), dim=-1)
    ones = torch.ones(1, 1, num_pairs)
    inputs = MemoryInputs(keys, keys, values, Gates(ones, ones, ones, 0 * ones))
    state, position = memory.initial_state(1), torch.zeros(1, dtype=torch.int64)
    for _ in range(num_passes):
        _, state = memory(inputs, state, position)
        position = position + num_pairs
    answers: Tensor = memory.network.apply(memory.feature_map(keys), keys, lambda name, x: x @ state.memory[name])
    nearest = (answers[0, 0] @ values[0, 0].mT).argmax(-1)
    return float((nearest == torch.arange(num_pairs)).float().mean())


def _curves(found: Sequence[Capacity]) -> dict[str, list[tuple[int, int]]]:
    """Pairs over key width, by memory; and the number of features, which is the theory's line."""
    curves: dict[str, list[tuple[int, int]]] = {}
    for each in found:
        name = f"{each.network}, degree {each.feature_degree}, {each.num_passes} passes"
        curves.setdefault(name, []).append((each.key_width, each.num_pairs))
        points = curves.setdefault(f"features of degree {each.feature_degree}", [])
        if (each.key_width, each.num_features) not in points:
            points.append((each.key_width, each.num_features))
    return curves


def _largest(recall: Callable[[int], float], most: int) -> int:
    """The largest number up to `most` with RECALLED_SHARE, to within 3 %; the search takes recall to be falling."""
    low, high = 1, 2
    while high <= most and recall(high) >= RECALLED_SHARE:
        low, high = high, 2 * high
    high = min(high, most)
    while high - low > max(1, low // 32):
        middle = (low + high) // 2
        low, high = (middle, high) if recall(middle) >= RECALLED_SHARE else (low, middle)
    return low

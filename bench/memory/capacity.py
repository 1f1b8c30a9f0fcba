"""`python -m bench capacity`: how many random pairs a memory holds, by key width, degree and depth. No trained model.

Keys and values are random unit vectors of one width. A pair is recalled when the value nearest to what its key reads,
among all that were stored, is its own; the capacity is the largest number of pairs of which 90 % are recalled, over
all seeds together, found by doubling and halving. Pairs are stored in two ways:

    passes   by the memory's own rule, as reading a text once or several times does: gates open, nothing forgotten, no
             momentum, bounded, chunks of 16 tokens. This measures the rule with the network.
    fitted   whatever the network can hold: least squares for a matrix, steps of Adam on all pairs for a deep memory.

Beside them stands what is counted: the features, O(d_k^p), the most pairs that a matrix of them holds exactly, and the
weights over the value width, the numbers there are for each number of a value: the most that any memory holds exactly
(Atlas, section 3.1: O(d_k) for a matrix, O(d_k^p) with features, O(d_k d_v) and more for a deep one). To be nearest is
less than to be exact, so what is measured may lie above what is counted.
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
from atlas_model.memory_networks import NETWORKS, Weights
from bench import report
from bench.plot import draw_capacity
from bench.workload import parse_counts, parse_length

RECALLED_SHARE = 0.9
FITTING_STEPS = 200
FITTING_RATE = 0.03


@dataclass(frozen=True, slots=True)
class Capacity:
    """num_weights: numbers in the memory, which is what a session pays for. num_pairs: by how they were stored."""

    network: str
    key_width: int
    feature_degree: int
    num_features: int
    num_weights: int
    num_pairs: dict[str, int]

    @property
    def weights_per_value(self) -> int:
        return self.num_weights // self.key_width


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key-widths", type=parse_counts, default="8,16,32,64", help="d_k, the values' width too")
    parser.add_argument(
        "--degrees", type=parse_counts, default="1,2,3", help="of a matrix; deep memories have the first"
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--passes", type=parse_counts, default="1,8", help="how often all pairs are written")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--max-pairs", type=int, default=4096, help="where the search ends; wider features are left out"
    )
    parser.add_argument("--threads", type=parse_length, default=1, help="torch's threads")
    report.add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    key_widths, degrees, passes = arguments.key_widths, arguments.degrees, arguments.passes
    print(f"{'memory':<10} {'d_k':>4} {'degree':>6} {'features':>8} {'weights/d_v':>11}   pairs")
    found = []
    for network in arguments.networks:
        for degree in degrees if network == "matrix" else degrees[:1]:
            for key_width in key_widths:
                config = capacity_config(network, key_width, degree)
                if num_features(config) > arguments.max_pairs:
                    continue
                capacity = measure(config, passes, arguments.seeds, arguments.max_pairs)
                found.append(capacity)
                pairs = ", ".join(f"{stored} {count:,}" for stored, count in capacity.num_pairs.items())
                print(
                    f"{network:<10} {key_width:>4} {degree:>6} {capacity.num_features:>8,}"
                    f" {capacity.weights_per_value:>11,}   {pairs}",
                    flush=True,
                )
    if arguments.plot is not None:
        draw_capacity(_measured(found), _counted(found), arguments.plot)
    document: report.Json = {
        **report.header("capacity"),
        "num_threads": arguments.threads,
        "recalled_share": RECALLED_SHARE,
        "num_seeds": arguments.seeds,
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
        memory_chunk_size=16,
        feature_degree=degree,
        feature_width=key_width,
        feature_norm="unit",
        retention="none",
        max_momentum_decay=0.0,
    )


def measure(config: MemoryConfig, passes: Sequence[int], num_seeds: int, max_pairs: int) -> Capacity:
    """The capacity, by search over the number of pairs."""
    torch.manual_seed(0)
    memory = NeuralMemory(config).requires_grad_(False)
    stores: dict[str, Callable[[Tensor, Tensor], Weights]] = {
        f"{count} pass{'es' if count > 1 else ''}": partial(_read, memory, count) for count in passes
    }
    stores["fitted"] = partial(_solve if config.network == "matrix" else _fit, memory)
    return Capacity(
        network=config.network,
        key_width=config.key_width,
        feature_degree=config.feature_degree,
        num_features=num_features(config),
        num_weights=sum(inputs * outputs for inputs, outputs in memory.network.shapes().values()),
        num_pairs={
            name: _largest(partial(recalled, memory, store, num_seeds), max_pairs) for name, store in stores.items()
        },
    )


def recalled(memory: NeuralMemory, store: Callable[[Tensor, Tensor], Weights], num_seeds: int, num_pairs: int) -> float:
    """Share of the pairs whose own value is the nearest to what their key reads, after `store`; one row a seed."""
    generator = torch.Generator().manual_seed(0)
    width = memory.config.key_width
    keys, values = normalize(torch.randn(2, num_seeds, 1, num_pairs, width, generator=generator), dim=-1)
    weights = store(keys, values)
    answers = memory.network.apply(memory.feature_map(keys), keys, lambda name, x: x @ weights[name])
    nearest = (answers @ values.mT).argmax(-1)
    return float((nearest == torch.arange(num_pairs)).float().mean())


@torch.inference_mode()
def _read(memory: NeuralMemory, num_passes: int, keys: Tensor, values: Tensor) -> Weights:
    """By the memory's own rule."""
    num_seeds, num_pairs = keys.shape[0], keys.shape[2]
    ones = torch.ones(keys.shape[:3])
    inputs = MemoryInputs(keys, keys, values, Gates(ones, ones, ones, 0 * ones))
    state, position = memory.initial_state(num_seeds), torch.zeros(num_seeds, dtype=torch.int64)
    for _ in range(num_passes):
        _, state = memory(inputs, state, position)
        position = position + num_pairs
    # Neutral tokens end the open chunk, which is written when it is full.
    rest = torch.zeros(num_seeds, 1, -int(position[0]) % memory.config.memory_chunk_size, keys.shape[3])
    if rest.shape[2] > 0:
        shut = rest[..., 0]
        _, state = memory(MemoryInputs(rest, rest, rest, Gates(shut, shut + 1, shut, shut)), state, position)
    return state.memory


def _solve(memory: NeuralMemory, keys: Tensor, values: Tensor) -> Weights:
    """The matrix of least squares, in float64."""
    features = memory.feature_map(keys).double()
    return {"w": torch.linalg.lstsq(features, values.double(), driver="gelsy").solution.to(values.dtype)}


def _fit(memory: NeuralMemory, keys: Tensor, values: Tensor) -> Weights:
    """By Adam on all pairs, with a rate that falls to 0."""
    features = memory.feature_map(keys)
    weights = {
        name: each.expand(keys.shape[0], *each.shape).clone().requires_grad_() for name, each in memory.initial.items()
    }
    optimizer = torch.optim.Adam(weights.values(), lr=FITTING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, FITTING_STEPS)
    for _ in range(FITTING_STEPS):
        answers = memory.network.apply(features, keys, lambda name, x: x @ weights[name])
        optimizer.zero_grad()
        (answers - values).square().sum(-1).mean().backward()
        optimizer.step()
        schedule.step()
    return {name: each.detach() for name, each in weights.items()}


def _measured(found: Sequence[Capacity]) -> dict[str, list[tuple[int, int]]]:
    """Pairs over key width, by memory and way of storing."""
    curves: dict[str, list[tuple[int, int]]] = {}
    for each in found:
        for stored, num_pairs in each.num_pairs.items():
            name = f"{each.network}, degree {each.feature_degree}, {stored}"
            curves.setdefault(name, []).append((each.key_width, num_pairs))
    return curves


def _counted(found: Sequence[Capacity]) -> dict[str, list[tuple[int, int]]]:
    """The theory's lines over key width: features for a matrix, weights over the value width for a deep memory."""
    curves: dict[str, list[tuple[int, int]]] = {}
    for each in found:
        if each.network == "matrix":
            name, count = f"features of degree {each.feature_degree}", each.num_features
        else:
            name, count = f"weights / d_v of {each.network}", each.weights_per_value
        curves.setdefault(name, []).append((each.key_width, count))
    return curves


def _largest(recall: Callable[[int], float], most: int) -> int:
    """The largest number up to `most` with RECALLED_SHARE, to within 6 %; the search takes recall to be falling."""
    low, high = 1, 2
    while high <= most and recall(high) >= RECALLED_SHARE:
        low, high = high, 2 * high
    high = min(high, most)
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if recall(middle) >= RECALLED_SHARE else (low, middle)
    return low

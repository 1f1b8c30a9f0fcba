"""Memories, inputs and states for the tests of the memory's three forms: random, but with gates at their ends too."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from atlas_model.config import MemoryConfig
from atlas_model.feature_map import FeatureMap
from atlas_model.gates import Gates
from atlas_model.memory import MemoryInputs, MemoryRule, MemoryState, memory_state_spec
from atlas_model.memory_networks import memory_network

BATCH_SIZE = 2
BASE = MemoryConfig(
    num_heads=2, key_width=4, value_width=4, memory_chunk_size=6, feature_width=2, max_momentum_decay=0.8
)


def configurations() -> list[MemoryConfig]:
    """Every rule of this model family that can be configured: the grid that the forms must agree on."""
    rules = [
        replace(BASE, rule="gd", read_granularity="token", step="bounded"),
        replace(BASE, rule="gd", read_granularity="token", step="free"),
        replace(BASE, rule="gd", read_granularity="chunk", step="bounded"),
        replace(BASE, rule="muon", read_granularity="chunk", step="free"),
    ]
    networks: tuple[Literal["matrix", "mlp"], ...] = ("matrix", "mlp")
    return [
        replace(rule, network=network, omega_window=window, feature_degree=degree)
        for rule, network, window, degree in itertools.product(rules, networks, (1, 2, 4, 9), (1, 2))
    ]


def describe(config: MemoryConfig) -> str:
    return "-".join(
        [
            config.network,
            config.rule,
            config.read_granularity,
            config.step,
            f"c{config.omega_window}",
            f"p{config.feature_degree}",
        ]
    )


@dataclass(frozen=True)
class Case:
    """A rule with a state at position 0 that is not the zero state, and tokens to feed."""

    rule: MemoryRule
    state: MemoryState
    position: Tensor
    inputs: MemoryInputs

    def piece(self, start: int, stop: int) -> MemoryInputs:
        return piece(self.inputs, start, stop)


def piece(inputs: MemoryInputs, start: int, stop: int) -> MemoryInputs:
    """Tokens start..stop."""
    gates = inputs.gates.stack()[:, :, start:stop]
    return MemoryInputs(
        inputs.queries[:, :, start:stop],
        inputs.keys[:, :, start:stop],
        inputs.values[:, :, start:stop],
        Gates.unstack(gates),
    )


def make_case(config: MemoryConfig, num_tokens: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def gate(low: float, high: float) -> Tensor:
        """Uniform in [low, high], one in five at each end exactly."""
        shape = (BATCH_SIZE, config.num_heads, num_tokens)
        drawn = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
        kind = torch.randint(0, 5, shape, generator=generator)
        return torch.where(kind == 0, low, torch.where(kind == 1, high, drawn))

    heads = config.num_heads
    torch.manual_seed(seed)
    feature_map = FeatureMap(config).to(dtype).requires_grad_(False)
    inputs = MemoryInputs(
        queries=torch.nn.functional.normalize(normal(BATCH_SIZE, heads, num_tokens, config.key_width), dim=-1).to(
            dtype
        ),
        keys=torch.nn.functional.normalize(normal(BATCH_SIZE, heads, num_tokens, config.key_width), dim=-1).to(dtype),
        values=normal(BATCH_SIZE, heads, num_tokens, config.value_width).to(dtype),
        gates=Gates(
            gate(0.0, 1.0).to(dtype),
            gate(0.0, 1.0).to(dtype),
            gate(0.0, 1.5).to(dtype),
            gate(0.0, config.max_momentum_decay).to(dtype),
        ),
    )
    tensors = {
        name: torch.zeros(BATCH_SIZE, *spec.shape, dtype=spec.dtype)
        for name, spec in memory_state_spec(config, dtype, dtype).items()
    }
    network = memory_network(config)
    state = MemoryState(
        memory={n: (0.5 * normal(BATCH_SIZE, heads, *s)).to(dtype) for n, s in network.shapes().items()},
        momentum={n: (0.2 * normal(BATCH_SIZE, heads, *s)).to(dtype) for n, s in network.shapes().items()},
        keys=tensors["keys"],
        values=tensors["values"],
        gates=tensors["gates"],
    )
    rule = MemoryRule(config, network, feature_map, torch.full((heads,), 1.5, dtype=dtype))
    return Case(rule, state, torch.zeros(BATCH_SIZE, dtype=torch.int64), inputs)


def named(state: MemoryState) -> dict[str, Tensor]:
    """Every field of a state by name."""
    fields = {f"memory.{name}": weights for name, weights in state.memory.items()}
    fields |= {f"momentum.{name}": weights for name, weights in state.momentum.items()}
    return fields | {"keys": state.keys, "values": state.values, "gates": state.gates}


def largest_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected value (at least 1)."""
    if actual.numel() == 0:
        return 0.0
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1.0))

"""Memories, inputs and states for the tests of the memory's three forms: random, but with gates at their ends too."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from atlas_model.config import MemoryConfig
from atlas_model.feature_map import FeatureMap
from atlas_model.gates import Gates
from atlas_model.memory import MemoryInputs, MemoryRule, MemoryState, memory_network, memory_state_spec
from atlas_model.memory_networks import NETWORKS
from atlas_model.objectives import OBJECTIVES

BATCH_SIZE = 2
BASE = MemoryConfig(
    num_heads=2, key_width=4, value_width=4, memory_chunk_size=6, feature_width=2, max_momentum_decay=0.8
)


RULES = {
    "gd-token-bounded": replace(BASE, rule="gd", read_granularity="token", step="bounded"),
    "gd-token-free": replace(BASE, rule="gd", read_granularity="token", step="free"),
    "gd-chunk-bounded": replace(BASE, rule="gd", read_granularity="chunk", step="bounded"),
    "muon-per-chunk": replace(BASE, rule="muon", read_granularity="chunk", step="free"),
    "muon-per-token": replace(BASE, rule="muon", muon_granularity="token", read_granularity="token", step="free"),
}
DELTA_RULE = replace(RULES["gd-chunk-bounded"], max_momentum_decay=0.0, feature_degree=2)
OTHER_AXES = {
    "delta": DELTA_RULE,
    "delta-keeps-all-unit-features": replace(DELTA_RULE, retention="none", feature_norm="unit"),
    "delta-decay-to-initial-huber": replace(DELTA_RULE, retention_target="initial", objective="huber", step="free"),
    "muon-per-token-read-per-chunk": replace(RULES["muon-per-token"], read_granularity="chunk", omega_window=2),
    "dot": replace(BASE, objective="dot", step="free"),
    "lp": replace(BASE, objective="lp", objective_power=2.5, step="free", network="mlp"),
    "huber": replace(BASE, objective="huber", huber_delta=0.7, network="mlp"),
    "huber-gated": replace(BASE, objective="huber", huber_delta=0.7, network="gated_mlp", omega_window=2),
    "decay-to-initial": replace(BASE, retention_target="initial", omega_window=2),
    "decay-to-initial-mlp-chunk": replace(
        BASE, retention_target="initial", network="mlp", read_granularity="chunk", step="free"
    ),
    "decay-to-initial-muon-per-chunk": replace(RULES["muon-per-chunk"], retention_target="initial"),
    "decay-to-initial-muon-per-token": replace(RULES["muon-per-token"], retention_target="initial", network="mlp"),
    "row-norm": replace(BASE, retention="row_norm", network="mlp"),
    "row-norm-muon-per-chunk": replace(RULES["muon-per-chunk"], retention="row_norm", network="gated_mlp"),
    "row-norm-muon-per-token": replace(RULES["muon-per-token"], retention="row_norm", network="mlp"),
    "keeps-all": replace(BASE, retention="none"),
    "degree-3": replace(BASE, feature_degree=3, feature_norm="unit"),
    "elementwise": replace(BASE, feature_degree=3, feature_kind="elementwise"),
    "no-momentum": replace(BASE, max_momentum_decay=0.0, omega_window=4, network="gated_mlp"),
    "no-momentum-muon-per-chunk": replace(RULES["muon-per-chunk"], max_momentum_decay=0.0, omega_window=2),
    "no-momentum-muon-per-token": replace(RULES["muon-per-token"], max_momentum_decay=0.0, omega_window=2),
}


def configurations() -> dict[str, MemoryConfig]:
    """The fixed grid that the forms must agree on: every rule with every network, window and degree up to 2, and each
    value of the other axes at least once."""
    grid = {
        f"{network}-{name}-c{window}-p{degree}": replace(
            rule, network=network, omega_window=window, feature_degree=degree
        )
        for (name, rule), network, window, degree in itertools.product(RULES.items(), NETWORKS, (1, 2, 4, 9), (1, 2))
        if (network, degree) != ("gated_mlp", 1)
    }
    return grid | OTHER_AXES


@st.composite
def drawn_configurations(draw: st.DrawFn) -> MemoryConfig:
    """Any configuration that is not refused."""
    key_width = draw(st.integers(2, 5))
    values: dict[str, Any] = {
        "num_heads": draw(st.integers(1, 2)),
        "key_width": key_width,
        "value_width": draw(st.integers(2, 5)),
        "network": draw(st.sampled_from(list(NETWORKS))),
        "objective": draw(st.sampled_from(list(OBJECTIVES))),
        "objective_power": draw(st.sampled_from([1.5, 2.0, 3.0])),
        "huber_delta": draw(st.sampled_from([0.1, 1.0])),
        "read_granularity": draw(st.sampled_from(["token", "chunk"])),
        "step": draw(st.sampled_from(["bounded", "free"])),
        "memory_chunk_size": draw(st.integers(1, 6)),
        "omega_window": draw(st.integers(1, 8)),
        "feature_degree": draw(st.integers(1, 3)),
        "feature_width": draw(st.integers(1, key_width)),
        "feature_kind": draw(st.sampled_from(["polynomial", "elementwise"])),
        "feature_norm": draw(st.sampled_from(["none", "unit"])),
        "retention": draw(st.sampled_from(["decay", "row_norm", "none"])),
        "retention_target": draw(st.sampled_from(["zero", "initial"])),
        "max_momentum_decay": draw(st.sampled_from([0.0, 0.5, 0.9])),
    }
    if draw(st.booleans()):
        granularity = draw(st.sampled_from(["chunk", "token"]))
        values |= {"rule": "muon", "muon_granularity": granularity, "step": "free"}
        if granularity == "chunk":
            values["read_granularity"] = "chunk"
    if values["objective"] in ("dot", "lp"):
        values["step"] = "free"
    if values["network"] == "matrix" and values["retention"] == "row_norm":
        values["retention"] = "none"
    if values["retention"] != "decay":
        values["retention_target"] = "zero"
    return MemoryConfig(**values)


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


def make_case(
    config: MemoryConfig,
    num_tokens: int,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    max_inner_lr: float = 1.5,
) -> Case:
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
            gate(0.0 if config.retention == "decay" else 1.0, 1.0).to(dtype),
            gate(0.0, max_inner_lr).to(dtype),
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
        momentum={
            n: (0.2 * normal(BATCH_SIZE, heads, *s)).to(dtype)
            for n, s in network.shapes().items()
            if f"momentum.{n}" in tensors
        },
        keys=tensors["keys"],
        values=tensors["values"],
        gates=tensors["gates"],
    )
    initial = {name: (0.3 * normal(heads, *shape)).to(dtype) for name, shape in network.shapes().items()}
    rule = MemoryRule(config, network, feature_map, torch.full((heads,), max_inner_lr, dtype=dtype), initial)
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

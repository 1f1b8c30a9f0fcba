"""What the three forms of the memory share: the rule, its inputs, its state.

    Omega loss   L_t(M) = sum_{i=t-c+1..t} gamma_i objective(M(phi(k_i)), v_i)        Atlas, Eq 9
    momentum     S_t = theta_t S_{t-1} + grad L_t(M_anchor)                           Eq 33
    memory       M_t = alpha_t M_{t-1} + (1 - alpha_t) T - eta_t P(S_t)               Eq 32
    read         y_t = M_t(phi(q_t))

P is the identity for `gd` and Newton-Schulz, once a chunk or of every S_t, for `muon`. T, what is decayed to, is 0 or
the initial memory. All gradients of a chunk are taken at the memory of the chunk's start, the anchor. Chunks are
counted from the start of the session, never of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from atlas_model.config import MemoryConfig
from atlas_model.feature_map import num_features
from atlas_model.gates import Gates
from atlas_model.memory_networks import NETWORKS, Factors, MemoryNetwork, Weights
from atlas_model.objectives import OBJECTIVES, Objective


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape (without the batch dimension) and dtype of one tensor of a state."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def memory_network(config: MemoryConfig) -> MemoryNetwork:
    """The network that `config.network` names."""
    return NETWORKS[config.network](num_features(config), config.key_width, config.value_width)


@dataclass(frozen=True, slots=True)
class MemoryRule:
    """The rule of one layer.

    max_inner_lr [H] is the largest inner_lr its gates can reach; initial, each [H, inputs, outputs], the learned start.
    """

    config: MemoryConfig
    network: MemoryNetwork
    feature_map: Callable[[Tensor], Tensor]
    max_inner_lr: Tensor
    initial: Weights

    @property
    def objective(self) -> Objective:
        return OBJECTIVES[self.config.objective](self.config.objective_power, self.config.huber_delta)

    def factors(self, features: Tensor, keys: Tensor, values: Tensor, weights: Weights) -> Factors:
        """The gradient of each token's loss at `weights`; features [B, H, T, num_features]."""
        objective = self.objective
        return self.network.factors(features, keys, lambda answer: objective.slope(answer, values), weights)

    def after_chunk(self, memory: Weights) -> Weights:
        """What retention does to the memory once, when a chunk is committed."""
        if self.config.retention != "row_norm":
            return memory

        def norm(weights: Tensor) -> Tensor:
            norms: Tensor = torch.linalg.vector_norm(weights, dim=-1, keepdim=True)
            return norms.clamp(min=torch.finfo(weights.dtype).tiny)

        return {name: weights * (norm(self.initial[name]) / norm(weights)) for name, weights in memory.items()}

    @property
    def carries_momentum(self) -> bool:
        return self.config.max_momentum_decay > 0

    @property
    def future_push(self) -> Tensor:
        """How far a unit of momentum can still push the memory after its chunk, [H]; the bounded step counts it in."""
        decay = self.config.max_momentum_decay
        return self.max_inner_lr * (decay / (1.0 - decay))


@dataclass(frozen=True, slots=True)
class MemoryInputs:
    """queries and keys [B, H, T, key_width], values [B, H, T, value_width], gates each [B, H, T]; one dtype.

    A gate that the configuration does without stands where it does nothing: retention at 1 where retention is not
    `decay`, momentum_decay at 0 where max_momentum_decay is 0. The forms count on it.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    gates: Gates


@dataclass(frozen=True, slots=True)
class MemoryState:
    """What a layer's memory carries from token to token; a value, never changed in place.

    memory, momentum: the anchor's matrices, each [B, H, inputs, outputs]; momentum is empty where nothing of it is ever
    carried, the rule's max_momentum_decay being 0.
    keys, values, gates: a buffer of omega_window - 1 tokens before the open chunk, then room for the open chunk's
    memory_chunk_size - 1; [B, H, buffer, key_width | value_width | 4]. Unused places are zero, and a window from
    before the session's first token is zero too: a token_gate of 0 writes nothing.
    key_sum: the sum of k k^T of a query projection, [B, H, key_width, key_width], None without one. The forms leave it
    alone: `project_queries` carries it.
    """

    memory: Weights
    momentum: Weights
    keys: Tensor
    values: Tensor
    gates: Tensor
    key_sum: Tensor | None = None

    def named_tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, in the order of `memory_state_spec`."""
        named = {f"memory.{name}": weights for name, weights in self.memory.items()}
        named |= {f"momentum.{name}": weights for name, weights in self.momentum.items()}
        named |= {"keys": self.keys, "values": self.values, "gates": self.gates}
        return named if self.key_sum is None else named | {"key_sum": self.key_sum}

    @classmethod
    def from_named_tensors(cls, tensors: Mapping[str, Tensor]) -> MemoryState:
        """The inverse of named_tensors, from among any others."""

        def weights(kind: str) -> Weights:
            return {name.removeprefix(kind): each for name, each in tensors.items() if name.startswith(kind)}

        return cls(
            weights("memory."),
            weights("momentum."),
            tensors["keys"],
            tensors["values"],
            tensors["gates"],
            tensors.get("key_sum"),
        )

    def gather(self, rows: Tensor) -> MemoryState:
        """The given rows, int64 [R], as a batch of their own, without the key_sum."""
        return MemoryState(
            {name: weights.index_select(0, rows) for name, weights in self.memory.items()},
            {name: weights.index_select(0, rows) for name, weights in self.momentum.items()},
            self.keys.index_select(0, rows),
            self.values.index_select(0, rows),
            self.gates.index_select(0, rows),
        )


def buffer_length(config: MemoryConfig) -> int:
    """Tokens the buffer of a MemoryState has room for."""
    return config.omega_window - 1 + config.memory_chunk_size - 1


def memory_state_spec(
    config: MemoryConfig, memory_dtype: torch.dtype, buffer_dtype: torch.dtype
) -> dict[str, TensorSpec]:
    """The tensors of one MemoryState by name, `memory.w`, `momentum.w`, `keys` and so on, in a fixed order."""
    heads, length = config.num_heads, buffer_length(config)
    shapes = memory_network(config).shapes()
    spec: dict[str, TensorSpec] = {}
    for kind in ("memory", "momentum") if config.max_momentum_decay > 0 else ("memory",):
        for name, shape in shapes.items():
            spec[f"{kind}.{name}"] = TensorSpec((heads, *shape), memory_dtype)
    for name, width in (("keys", config.key_width), ("values", config.value_width), ("gates", 4)):
        spec[name] = TensorSpec((heads, length, width), buffer_dtype)
    if config.query_projection == "keys":
        spec["key_sum"] = TensorSpec((heads, config.key_width, config.key_width), memory_dtype)
    return spec

"""The memory networks: how they are read, and the closed-form gradient of the inner loss for one token.

The inner loss of a token is 1/2 |M(phi(k)) - v|^2 (Atlas, Eq 9; the 1/2 is ours). Its gradient with respect to each
matrix is an outer product of two vectors, `left` and `right`, so a chunk of gradients is two thin matrices and not a
stack of full ones. Rows are tokens, there are no biases, and autograd is never needed at run time.

A network that is added here implements `MemoryNetwork` and enters the table at the end; nothing else changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import gelu

from atlas_model.config import MemoryConfig
from atlas_model.feature_map import num_features

Weights = dict[str, Tensor]
"""The matrices of a memory by name, each [B, H, inputs, outputs]."""

Linear = Callable[[str, Tensor], Tensor]
"""Multiply [B, H, T, inputs] by the named matrix of whatever memory each token is to see."""

Factors = dict[str, tuple[Tensor, Tensor]]
"""Per matrix `left` [B, H, T, inputs] and `right` [B, H, T, outputs]; the gradient of token i is left_i right_i^T."""

_MAX_GELU_SLOPE = 1.13
_MLP_EXPANSION = 4


class MemoryNetwork(Protocol):
    """One architecture of memory. `residual` is the raw key or query, [B, H, T, key_width]."""

    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """Inputs and outputs of each matrix of one head."""
        ...

    def initial(self, name: str) -> float:
        """Standard deviation of the named matrix's learned initial value before training."""
        ...

    def apply(self, features: Tensor, residual: Tensor, linear: Linear) -> Tensor:
        """What the memory answers, [B, H, T, value_width]."""
        ...

    def factors(self, features: Tensor, residual: Tensor, values: Tensor, weights: Weights) -> Factors:
        """The gradient of each token's inner loss at `weights`."""
        ...

    def inverse_step(self, writes: Tensor, key_norm: Tensor, factors: Factors, weights: Weights) -> Tensor:
        """A bound on how far the summed writes `writes` [..., T, columns] push; the step is divided by it above 1.

        key_norm [..., T] is |sum_i w_i x_i x_i^T|_F over the features x of the columns.
        """
        ...


def gram_norm(writes: Tensor, rows: Tensor) -> Tensor:
    """|sum_i w_i x_i x_i^T|_F for each row w of `writes` [..., T, columns] and the rows x of `rows` [..., columns, d].

    Computed as sqrt(w (G * G) w^T) with G = X X^T, so the d x d sum is never formed. Result [..., T].
    """
    gram = rows @ rows.mT
    squared = ((writes @ gram.square()) * writes).sum(-1)
    return squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt()


class MatrixMemory:
    """M(x) = x W: the linear memory of Titans' and OmegaNet's simplest rows. No residual."""

    def __init__(self, config: MemoryConfig) -> None:
        self._shapes = {"w": (num_features(config), config.value_width)}

    def shapes(self) -> Mapping[str, tuple[int, int]]:
        return self._shapes

    def initial(self, name: str) -> float:
        return 0.0

    def apply(self, features: Tensor, residual: Tensor, linear: Linear) -> Tensor:
        return linear("w", features)

    def factors(self, features: Tensor, residual: Tensor, values: Tensor, weights: Weights) -> Factors:
        return {"w": (features, features @ weights["w"] - values)}

    def inverse_step(self, writes: Tensor, key_norm: Tensor, factors: Factors, weights: Weights) -> Tensor:
        return key_norm


class MlpMemory:
    """M(x) = residual + gelu(x W_in) W_out (Atlas, Eq 42), gelu the exact one, hidden width 4 value_width.

    The residual is the raw key or query when key_width = value_width and absent otherwise (decided here).
    """

    def __init__(self, config: MemoryConfig) -> None:
        hidden = _MLP_EXPANSION * config.value_width
        self._shapes = {"w_in": (num_features(config), hidden), "w_out": (hidden, config.value_width)}
        self._has_residual = config.key_width == config.value_width

    def shapes(self) -> Mapping[str, tuple[int, int]]:
        return self._shapes

    def initial(self, name: str) -> float:
        return 1.0 / math.sqrt(self._shapes[name][0])

    def apply(self, features: Tensor, residual: Tensor, linear: Linear) -> Tensor:
        out = linear("w_out", gelu(linear("w_in", features)))
        return residual + out if self._has_residual else out

    def factors(self, features: Tensor, residual: Tensor, values: Tensor, weights: Weights) -> Factors:
        z = features @ weights["w_in"]
        h = gelu(z)
        error = h @ weights["w_out"] - values
        if self._has_residual:
            error = error + residual
        g = (error @ weights["w_out"].mT) * _gelu_slope(z)
        return {"w_in": (features, g), "w_out": (h, error)}

    def inverse_step(self, writes: Tensor, key_norm: Tensor, factors: Factors, weights: Weights) -> Tensor:
        hidden_norm = gram_norm(writes, factors["w_out"][0])
        gain = _MAX_GELU_SLOPE**2 * weights["w_out"].square().sum((-2, -1))
        return hidden_norm + gain[..., None] * key_norm


def _gelu_slope(z: Tensor) -> Tensor:
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2.0 * math.pi)
    return 0.5 * (1.0 + torch.erf(z / math.sqrt(2.0))) + z * density


_NETWORKS: Mapping[str, Callable[[MemoryConfig], MemoryNetwork]] = {"matrix": MatrixMemory, "mlp": MlpMemory}


def memory_network(config: MemoryConfig) -> MemoryNetwork:
    """The network that `config.network` names."""
    return _NETWORKS[config.network](config)

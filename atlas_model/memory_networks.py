"""The memory networks: how they are read, and the closed-form gradient of the inner loss for one token.

A token's loss is `objective(M(phi(k)), v)`. Its gradient with respect to each matrix is an outer product of two
vectors, `left` and `right`, so a chunk of gradients is two thin matrices and not a stack of full ones. Rows are tokens,
there are no biases, and autograd is never needed at run time.

A network that is added here implements `MemoryNetwork` and enters the table at the end; nothing else changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import gelu

Weights = dict[str, Tensor]
"""The matrices of a memory by name, each [B, H, inputs, outputs]."""

Linear = Callable[[str, Tensor], Tensor]
"""Multiply [B, H, T, inputs] by the named matrix of whatever memory each token is to see."""

Slope = Callable[[Tensor], Tensor]
"""Derivative of each token's loss in the memory's answer, [B, H, T, value_width] -> the same."""

Factors = dict[str, tuple[Tensor, Tensor]]
"""Per matrix `left` [B, H, T, inputs] and `right` [B, H, T, outputs]; the gradient of token i is left_i right_i^T."""

Curvature = Sequence[tuple[Tensor | None, Tensor | float]]
"""Terms (rows x [B, H, T, d], gain [B, H] or a number) of a bound on the curvature of the tokens' losses, weighed by
w: the sum over the terms of gain |sum_i w_i x_i x_i^T|_F. Rows of None are the features."""

_gelu_backward = torch.ops.aten.gelu_backward
"""(g, z) -> g times the slope of gelu at z, in one pass; it has a derivative of its own."""

_MAX_GELU_SLOPE = 1.13
_EXPANSION = 4


class MemoryNetwork(Protocol):
    """One architecture of memory. `residual` is the raw key or query, [B, H, T, key_width].

    has_key_term: whether a term of `curvature` has the features themselves for rows, as None.
    has_fixed_curvature: whether `curvature` is that term alone, with a gain of 1, whatever the memory holds.
    """

    has_key_term: bool
    has_fixed_curvature: bool

    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """Inputs and outputs of each matrix of one head."""
        ...

    def initial(self, name: str) -> float:
        """Standard deviation of the named matrix's learned initial value before training."""
        ...

    def apply(self, features: Tensor, residual: Tensor, linear: Linear) -> Tensor:
        """What the memory answers, [B, H, T, value_width]."""
        ...

    def factors(self, features: Tensor, residual: Tensor, slope: Slope, weights: Weights) -> Factors:
        """The gradient of each token's loss at `weights`."""
        ...

    def curvature(self, features: Tensor, factors: Factors, weights: Weights) -> Curvature:
        """How far a write of weight 1 of each token can push what the memory answers: see `Curvature`.

        For an objective of curvature 1. A step is stable where its writes' bound is at most 1.
        """
        ...


class MatrixMemory:
    """M(x) = x W: the linear memory of Titans' and OmegaNet's simplest rows. No residual."""

    has_key_term = True
    has_fixed_curvature = True

    def __init__(self, num_features: int, key_width: int, value_width: int) -> None:
        del key_width
        self._shapes = {"w": (num_features, value_width)}

    def shapes(self) -> Mapping[str, tuple[int, int]]:
        return self._shapes

    def initial(self, name: str) -> float:
        return 0.0

    def apply(self, features: Tensor, residual: Tensor, linear: Linear) -> Tensor:
        return linear("w", features)

    def factors(self, features: Tensor, residual: Tensor, slope: Slope, weights: Weights) -> Factors:
        return {"w": (features, slope(features @ weights["w"]))}

    def curvature(self, features: Tensor, factors: Factors, weights: Weights) -> Curvature:
        return [(None, 1.0)]


class _DeepMemory:
    """What the memories with a hidden layer share. Hidden width 4 value_width; gelu is the exact one.

    The residual is the raw key or query when key_width = value_width and absent otherwise (decided here).
    """

    has_fixed_curvature = False

    def __init__(self, num_features: int, key_width: int, value_width: int) -> None:
        self._hidden = _EXPANSION * value_width
        self._shapes = {"w_in": (num_features, self._hidden), "w_out": (self._hidden, value_width)}
        self._has_residual = key_width == value_width

    def shapes(self) -> Mapping[str, tuple[int, int]]:
        return self._shapes

    def initial(self, name: str) -> float:
        return 1.0 / math.sqrt(self._shapes[name][0])

    def _answer(self, out: Tensor, residual: Tensor) -> Tensor:
        return residual + out if self._has_residual else out


class MlpMemory(_DeepMemory):
    """M(x) = residual + gelu(x W_in) W_out (Atlas, Eq 42)."""

    has_key_term = True

    def apply(self, features: Tensor, residual: Tensor, linear: Linear) -> Tensor:
        return self._answer(linear("w_out", gelu(linear("w_in", features))), residual)

    def factors(self, features: Tensor, residual: Tensor, slope: Slope, weights: Weights) -> Factors:
        z = features @ weights["w_in"]
        h = gelu(z)
        error = slope(self._answer(h @ weights["w_out"], residual))
        g = _gelu_backward(error @ weights["w_out"].mT, z)
        return {"w_in": (features, g), "w_out": (h, error)}

    def curvature(self, features: Tensor, factors: Factors, weights: Weights) -> Curvature:
        hidden, _ = factors["w_out"]
        return [(hidden, 1.0), (None, _MAX_GELU_SLOPE**2 * _squared_norm(weights["w_out"]))]


class GatedMlpMemory(_DeepMemory):
    """M(x) = residual + (gelu(x W_in) * x W_gate) W_out (Atlas++, Eq 43)."""

    has_key_term = False

    def __init__(self, num_features: int, key_width: int, value_width: int) -> None:
        super().__init__(num_features, key_width, value_width)
        self._shapes["w_gate"] = (num_features, self._hidden)

    def apply(self, features: Tensor, residual: Tensor, linear: Linear) -> Tensor:
        gated = gelu(linear("w_in", features)) * linear("w_gate", features)
        return self._answer(linear("w_out", gated), residual)

    def factors(self, features: Tensor, residual: Tensor, slope: Slope, weights: Weights) -> Factors:
        z, u = features @ weights["w_in"], features @ weights["w_gate"]
        h = gelu(z)
        product = h * u
        error = slope(self._answer(product @ weights["w_out"], residual))
        d = error @ weights["w_out"].mT
        return {
            "w_in": (features, _gelu_backward(d * u, z)),
            "w_out": (product, error),
            "w_gate": (features, d * h),
        }

    def curvature(self, features: Tensor, factors: Factors, weights: Weights) -> Curvature:
        """Through W_in and W_gate a token's answer moves by at most |W_out| times its largest hidden slope."""
        z, u = features @ weights["w_in"], features @ weights["w_gate"]
        steepest = _gelu_backward(u, z).square().amax(-1) + gelu(z).square().amax(-1)
        product, _ = factors["w_out"]
        return [(product, 1.0), (features * steepest.sqrt()[..., None], _squared_norm(weights["w_out"]))]


def _squared_norm(matrices: Tensor) -> Tensor:
    """[B, H, inputs, outputs] -> [B, H]."""
    norms: Tensor = torch.linalg.vector_norm(matrices.flatten(-2), dim=-1)
    return norms.square()


NETWORKS: Mapping[str, Callable[[int, int, int], MemoryNetwork]] = {
    "matrix": MatrixMemory,
    "mlp": MlpMemory,
    "gated_mlp": GatedMlpMemory,
}
"""By name, from (number of features, key_width, value_width)."""

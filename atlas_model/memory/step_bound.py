"""The bounded step: the sum of a chunk's writes, and of their momentum's later pushes, never overshoots.

A gradient step is stable while eta times the loss's curvature stays under 2, and all gradients of a chunk share one
anchor, so it is the curvature of their weighted sum that counts (decided here; 32 equal keys make it 32):

    s_t = min(1, 1 / bound_t),   bound_t = sum over the network's terms of gain |sum_i w[t, i] x_i x_i^T|_F
"""

from __future__ import annotations

import torch
from torch import Tensor

from atlas_model.memory.coefficients import ChunkCoefficients
from atlas_model.memory.rule import MemoryRule
from atlas_model.memory_networks import Factors, Weights


def push_limits(rule: MemoryRule, coefficients: ChunkCoefficients) -> Tensor:
    """w[t, i]: how far the gradient of token i can push the memory, now and through the momentum later.

    [B, H, ..., rows, columns].
    """
    push = rule.future_push
    push = push.reshape(push.shape[0], *[1] * (coefficients.memory_writes.ndim - 2))
    return coefficients.memory_writes + coefficients.momentum_writes * push


def bound_by_keys(
    rule: MemoryRule, coefficients: ChunkCoefficients, pushes: Tensor, features: Tensor
) -> tuple[ChunkCoefficients, Tensor | None]:
    """What of the bound does not depend on the memory, for any number of chunks; features [B, H, ..., columns, width].

    Where that is all of it the coefficients come back scaled. Where it is a part of it, it is the norm of the features,
    [B, H, ..., rows], that `step_scale` asks for.
    """
    if rule.config.step == "free" or not rule.network.has_key_term:
        return coefficients, None
    norm = _gram_norm(pushes, features)
    if rule.network.has_fixed_curvature:
        return coefficients.scaled(_scale(norm)), None
    return coefficients, norm


def step_scale(
    rule: MemoryRule, memory: Weights, features: Tensor, factors: Factors, pushes: Tensor, key_norm: Tensor | None
) -> Tensor | None:
    """s_t of one chunk's prefixes, [B, H, rows]; None where the step is free, or bounded by the keys alone."""
    if rule.config.step == "free" or rule.network.has_fixed_curvature:
        return None
    bounds: list[Tensor] = []
    for rows, gain in rule.network.curvature(features, factors, memory):
        norm = key_norm if rows is None else _gram_norm(pushes, rows)
        assert norm is not None, "a network with a term of the features says so by has_key_term"
        bounds.append(norm * (gain if isinstance(gain, float) else gain[..., None]))
    return _scale(sum(bounds[1:], start=bounds[0]))


def _scale(bound: Tensor) -> Tensor:
    return bound.clamp(min=1.0).reciprocal()


def _gram_norm(writes: Tensor, rows: Tensor) -> Tensor:
    """|sum_i w_i x_i x_i^T|_F for each row w of `writes` [..., T, columns] and the rows x of `rows` [..., columns, d].

    Computed as sqrt(w (G * G) w^T) with G = X X^T, so the d x d sum is never formed. Result [..., T].
    """
    gram = rows @ rows.mT
    squared = ((writes @ gram.square()) * writes).sum(-1)
    return squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt()

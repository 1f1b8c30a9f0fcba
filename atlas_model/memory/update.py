"""Reading and committing one chunk, given its factors and coefficients: shared by the chunk and recurrent forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from atlas_model.memory.coefficients import ChunkCoefficients
from atlas_model.memory.rule import MemoryRule
from atlas_model.memory_networks import Factors, Weights
from atlas_model.newton_schulz import newton_schulz


class ChunkUpdate(Protocol):
    """One chunk at its anchor, up to the rows that its coefficients have."""

    def read(self, features: Tensor, queries: Tensor) -> Tensor:
        """What queries [B, H, rows, key_width] with their features read, each at its own memory or at the anchor."""
        ...

    def commit(self) -> tuple[Weights, Weights]:
        """Memory and momentum after the chunk's last token: the next anchor."""
        ...


def chunk_update(
    rule: MemoryRule,
    memory: Weights,
    momentum: Weights,
    factors: Factors,
    coefficients: ChunkCoefficients,
    step_scale: Tensor | None,
) -> ChunkUpdate:
    """The update of a chunk, all its rows or one, that the rule asks for. step_scale: see `step_bound.step_scale`."""
    if rule.config.muon_granularity == "token":
        return TokenMuonUpdate.at_anchor(rule, memory, momentum, factors, coefficients)
    if step_scale is not None:
        coefficients = coefficients.scaled(step_scale)
    return LinearUpdate(rule, memory, momentum, factors, coefficients)


def _minus_product(base: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """base - left @ right, all [B, H, rows, columns], in one pass over the result."""
    product = torch.baddbmm(base.flatten(0, 1), left.flatten(0, 1), right.flatten(0, 1), alpha=-1.0)
    return product.view(base.shape)


def decayed(rule: MemoryRule, name: str, old: Tensor, kept: Tensor, x: Tensor | None = None) -> Tensor:
    """What is left of a matrix, or of what x reads in it, and what has come in its place from the target of decay."""
    if rule.config.retention != "decay":
        return old
    if rule.config.retention_target == "zero":
        return old * kept
    initial = rule.initial[name].reshape(-1, *[1] * (old.ndim - 4), *rule.initial[name].shape[-2:])
    return old * kept + (initial if x is None else x @ initial) * (1.0 - kept)


@dataclass(frozen=True, slots=True)
class LinearUpdate:
    """`gd`, and `muon` per chunk: within the chunk the memory is a sum of the anchor's and of its tokens' gradients."""

    rule: MemoryRule
    memory: Weights
    momentum: Weights
    factors: Factors
    coefficients: ChunkCoefficients

    def read(self, features: Tensor, queries: Tensor) -> Tensor:
        if self.rule.config.read_granularity == "chunk":
            return self.rule.network.apply(features, queries, lambda name, x: x @ self.memory[name])
        return self.rule.network.apply(features, queries, self._multiply_at_own_token)

    def _multiply_at_own_token(self, name: str, x: Tensor) -> Tensor:
        left, right = self.factors[name]
        scalars = self.coefficients
        kept = decayed(self.rule, name, x @ self.memory[name], scalars.kept_memory[..., None], x)
        if self.rule.carries_momentum:
            kept = torch.addcmul(kept, x @ self.momentum[name], scalars.pushed_momentum[..., None], value=-1.0)
        return _minus_product(kept, scalars.memory_writes * (x @ left.mT), right)

    def commit(self) -> tuple[Weights, Weights]:
        last = self.coefficients.last()
        memory: Weights = {}
        momentum: Weights = {}
        for name, (left, right) in self.factors.items():
            memory[name] = decayed(self.rule, name, self.memory[name], last.kept_memory[..., None])
            if self.rule.carries_momentum or self.rule.config.rule == "muon":
                momentum[name] = left.mT @ (right * last.momentum_writes.mT)
            if self.rule.carries_momentum:
                momentum[name] = torch.addcmul(momentum[name], last.kept_momentum[..., None], self.momentum[name])
            if self.rule.config.rule == "muon":
                step = newton_schulz(momentum[name], self.rule.config.newton_schulz)
                memory[name] = torch.addcmul(
                    memory[name], self.coefficients.mean_push[..., None, None], step, value=-1.0
                )
                continue
            if self.rule.carries_momentum:
                memory[name] = torch.addcmul(
                    memory[name], last.pushed_momentum[..., None], self.momentum[name], value=-1.0
                )
            memory[name] = _minus_product(memory[name], left.mT, right * last.memory_writes.mT)
        return self.rule.after_chunk(memory), momentum if self.rule.carries_momentum else {}


@dataclass(frozen=True, slots=True)
class TokenMuonUpdate:
    """`muon` per token: Newton-Schulz of every token's momentum (Atlas, Eq 32-41), all of them formed.

        M_t = a_t M_0 - sum_{n <= t} A[t, n] eta_n max(gamma in n's window) NS(S_n)

    The largest gate of the window scales the step, for Newton-Schulz takes away all other scale: of a window that is
    shut nothing is written (decided here). Matrices are [B, H, rows, inputs, outputs]: the faithful reference, not a
    fast one, and a decode step forms its open chunk again.
    """

    rule: MemoryRule
    anchor: Weights
    memory: Weights
    momentum: Weights

    @classmethod
    def at_anchor(
        cls,
        rule: MemoryRule,
        anchor: Weights,
        anchor_momentum: Weights,
        factors: Factors,
        coefficients: ChunkCoefficients,
    ) -> TokenMuonUpdate:
        memory: Weights = {}
        momentum: Weights = {}
        for name, (left, right) in factors.items():
            weighed = coefficients.momentum_writes[..., None, :] * left.mT[:, :, None]
            momentum[name] = weighed @ right[:, :, None]
            if rule.carries_momentum:
                kept = coefficients.kept_momentum[..., None, None]
                momentum[name] = kept * anchor_momentum[name][:, :, None] + momentum[name]
            steps = newton_schulz(momentum[name], rule.config.newton_schulz)
            assert coefficients.step_writes is not None
            written = (coefficients.step_writes @ steps.flatten(-2)).view_as(steps)
            kept = coefficients.kept_memory[..., None, None]
            memory[name] = decayed(rule, name, anchor[name][:, :, None], kept) - written
        return cls(rule, anchor, memory, momentum)

    def row(self, index: Tensor) -> TokenMuonUpdate:
        """One row of each sequence, int64 [B]: the chunk up to that token."""

        def pick(weights: Tensor) -> Tensor:
            return weights.gather(
                2, index[:, None, None, None, None].expand(-1, weights.shape[1], 1, *weights.shape[3:])
            )

        memory = {name: pick(weights) for name, weights in self.memory.items()}
        momentum = {name: pick(weights) for name, weights in self.momentum.items()}
        return TokenMuonUpdate(self.rule, self.anchor, memory, momentum)

    def read(self, features: Tensor, queries: Tensor) -> Tensor:
        if self.rule.config.read_granularity == "chunk":
            return self.rule.network.apply(features, queries, lambda name, x: x @ self.anchor[name])
        return self.rule.network.apply(
            features, queries, lambda name, x: (x[..., None, :] @ self.memory[name])[..., 0, :]
        )

    def commit(self) -> tuple[Weights, Weights]:
        memory = {name: weights[:, :, -1] for name, weights in self.memory.items()}
        momentum = {name: weights[:, :, -1] for name, weights in self.momentum.items()}
        return self.rule.after_chunk(memory), momentum if self.rule.carries_momentum else {}

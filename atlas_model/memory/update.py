"""Reading and committing one chunk, given its factors and coefficients: shared by the chunk and recurrent forms."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from atlas_model.memory.coefficients import ChunkCoefficients
from atlas_model.memory.rule import MemoryRule
from atlas_model.memory_networks import Factors, Weights, gram_norm
from atlas_model.newton_schulz import newton_schulz


def push_limits(rule: MemoryRule, coefficients: ChunkCoefficients) -> Tensor:
    """w[t, i]: how far the gradient of token i can push the memory, now and through the momentum later.

    [B, H, ..., rows, columns], weights of the Gram matrix that bounds the step (decided here).
    """
    push = rule.future_push
    push = push.reshape(push.shape[0], *[1] * (coefficients.memory_writes.ndim - 2))
    return coefficients.memory_writes + coefficients.momentum_writes * push


def key_norms(rule: MemoryRule, pushes: Tensor, features: Tensor) -> list[Tensor | None]:
    """Per chunk the part of the bound that does not depend on the memory, [B, H, rows]; None where the step is free.

    pushes [B, H, chunks, rows, columns], features [B, H, chunks, columns, num_features].
    """
    if rule.config.step == "free":
        return [None] * pushes.shape[2]
    return list(gram_norm(pushes, features).unbind(2))


@dataclass(frozen=True, slots=True)
class ChunkUpdate:
    """One chunk at its anchor. step_scale [B, H, rows] is s_t, or None where the step is free."""

    rule: MemoryRule
    memory: Weights
    momentum: Weights
    factors: Factors
    coefficients: ChunkCoefficients
    step_scale: Tensor | None

    @classmethod
    def at_anchor(
        cls,
        rule: MemoryRule,
        memory: Weights,
        momentum: Weights,
        factors: Factors,
        coefficients: ChunkCoefficients,
        pushes: Tensor,
        key_norm: Tensor | None,
    ) -> ChunkUpdate:
        """Bound the step: s_t = min(1, 1 / inverse_step), for the sum of the writes of the prefix up to t."""
        step_scale = None
        if key_norm is not None:
            step_scale = rule.network.inverse_step(pushes, key_norm, factors, memory).clamp(min=1.0).reciprocal()
        return cls(rule, memory, momentum, factors, coefficients, step_scale)

    def read(self, features: Tensor, queries: Tensor) -> Tensor:
        """What queries [B, H, rows, key_width] with their features read, each at its own memory or at the anchor."""
        if self.rule.config.read_granularity == "chunk":
            return self.rule.network.apply(features, queries, lambda name, x: x @ self.memory[name])
        return self.rule.network.apply(features, queries, self._multiply_at_own_token)

    def _multiply_at_own_token(self, name: str, x: Tensor) -> Tensor:
        left, right = self.factors[name]
        scalars = self.coefficients
        kept = (x @ self.memory[name]) * scalars.kept_memory[..., None]
        pushed = (x @ self.momentum[name]) * scalars.pushed_momentum[..., None]
        written = (scalars.memory_writes * (x @ left.mT)) @ right
        return kept - pushed - self._scaled(written)

    def commit(self) -> tuple[Weights, Weights]:
        """Memory and momentum after the chunk's last token: the next anchor."""
        last = self.coefficients.last()
        kept_memory, pushed, kept_momentum = (
            scalar[..., None] for scalar in (last.kept_memory, last.pushed_momentum, last.kept_momentum)
        )
        memory: Weights = {}
        momentum: Weights = {}
        for name, (left, right) in self.factors.items():
            right = right if self.step_scale is None else right * self.step_scale[..., -1:, None]
            old_memory, old_momentum = self.memory[name], self.momentum[name]
            momentum[name] = kept_momentum * old_momentum + left.mT @ (right * last.momentum_writes.mT)
            if self.rule.config.rule == "muon":
                step = newton_schulz(momentum[name], self.rule.config.newton_schulz)
                memory[name] = kept_memory * old_memory - self.coefficients.mean_push[..., None, None] * step
            else:
                written = left.mT @ (right * last.memory_writes.mT)
                memory[name] = kept_memory * old_memory - pushed * old_momentum - written
        return memory, momentum

    def _scaled(self, written: Tensor) -> Tensor:
        return written if self.step_scale is None else written * self.step_scale[..., None]

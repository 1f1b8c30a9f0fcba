"""The scalars of a chunk: how much of each gradient is in the momentum and in the memory after each of its tokens.

With the products of the gates over tokens 1..b of a chunk, and columns i that start omega_window - 1 tokens before it:

    C[t, i] = gamma_i sum_{m = max(i, 1) .. min(t, i+c-1)} prod_{l=m+1..t} theta_l,  beta_t = prod_{m<=t} theta_m
    A[t, n] = prod_{m=n+1..t} alpha_m,  a_t = prod_{m<=t} alpha_m,  D = A diag(eta) C,  kappa = A diag(eta) beta
    S_t = beta_t S_0 + sum_i C[t, i] u_i
    M_t = a_t M_0 - kappa_t S_0 - sum_i D[t, i] u_i                                               (P = identity)

u_i is the gradient of token i at the anchor. No product is ever divided by another, so gates may be exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atlas_model.gates import Gates


@dataclass(frozen=True, slots=True)
class ChunkCoefficients:
    """One row per token t of the chunk (or its last token alone): columns are the window's tokens, then the chunk's.

    kept_memory (a), pushed_momentum (kappa), kept_momentum (beta): [..., rows].
    memory_writes (D), momentum_writes (C): [..., rows, omega_window - 1 + memory_chunk_size].
    mean_push: [...], the mean of token_gate * inner_lr over the chunk's tokens: the step of `muon` per chunk.
    step_writes: [..., rows, memory_chunk_size], A diag(eta max(gamma in the window)), of `muon` per token; or None.
    """

    kept_memory: Tensor
    pushed_momentum: Tensor
    kept_momentum: Tensor
    memory_writes: Tensor
    momentum_writes: Tensor
    mean_push: Tensor
    step_writes: Tensor | None = None

    def chunks(self) -> list[ChunkCoefficients]:
        """One for each chunk, where the chunks are the third dimension."""
        fields = (
            self.kept_memory,
            self.pushed_momentum,
            self.kept_momentum,
            self.memory_writes,
            self.momentum_writes,
            self.mean_push,
        )
        chunks = [ChunkCoefficients(*each) for each in zip(*(field.unbind(2) for field in fields), strict=True)]
        if self.step_writes is None:
            return chunks
        return [
            replace(each, step_writes=writes) for each, writes in zip(chunks, self.step_writes.unbind(2), strict=True)
        ]

    def scaled(self, step_scale: Tensor) -> ChunkCoefficients:
        """With every row's writes times its step_scale, [..., rows]."""
        scale = step_scale[..., None]
        return replace(self, memory_writes=self.memory_writes * scale, momentum_writes=self.momentum_writes * scale)

    def where(self, ends: Tensor) -> ChunkCoefficients:
        """As they are where `ends`, bool [B, 1, chunks]; elsewhere nothing is written and the memory is kept."""
        return replace(
            self,
            kept_memory=torch.where(ends[..., None], self.kept_memory, 1.0),
            memory_writes=self.memory_writes * ends[..., None, None],
        )

    def row(self, index: Tensor) -> ChunkCoefficients:
        """One row of each sequence, int64 [B]: the chunk up to that token. The batch is the first dimension."""

        def scalar(x: Tensor) -> Tensor:
            return x.gather(2, index[:, None, None].expand(-1, x.shape[1], 1))

        def columns(x: Tensor) -> Tensor:
            return x.gather(2, index[:, None, None, None].expand(-1, x.shape[1], 1, x.shape[3]))

        return ChunkCoefficients(
            scalar(self.kept_memory),
            scalar(self.pushed_momentum),
            scalar(self.kept_momentum),
            columns(self.memory_writes),
            columns(self.momentum_writes),
            self.mean_push,
        )

    def last(self) -> ChunkCoefficients:
        """The last token's row alone: what a commit needs."""
        if self.memory_writes.shape[-2] == 1:
            return self
        return ChunkCoefficients(
            self.kept_memory[..., -1:],
            self.pushed_momentum[..., -1:],
            self.kept_momentum[..., -1:],
            self.memory_writes[..., -1:, :],
            self.momentum_writes[..., -1:, :],
            self.mean_push,
        )


def chunk_coefficients(
    gates: Gates, omega_window: int, last_row_only: bool, carries_momentum: bool, every_step: bool
) -> ChunkCoefficients:
    """Coefficients of chunks whose gates [..., omega_window - 1 + b] include the window's before the chunk.

    Of the window's tokens only token_gate matters. With last_row_only the results have one row, the chunk's end.
    carries_momentum: else momentum_decay is taken to be 0. every_step: for `muon` per token, which needs all rows.
    """
    last_row_only = last_row_only and not every_step
    before = omega_window - 1
    retention, inner_lr, momentum_decay = (
        gate[..., before:] for gate in (gates.retention, gates.inner_lr, gates.momentum_decay)
    )
    rows = slice(-1, None) if last_row_only else slice(None)
    if last_row_only:
        memory_products = retention[..., 1:].flip(-1).cumprod(-1).flip(-1)
        memory_products = torch.cat([memory_products, torch.ones_like(retention[..., :1])], -1)[..., None, :]
    else:
        memory_products = _products(retention)
    pushes = memory_products * inner_lr[..., None, :]
    band = _window_band(retention.shape[-1], omega_window, retention)
    token_gate = gates.token_gate[..., None, :]
    kept_momentum = momentum_decay.cumprod(-1)
    if carries_momentum:
        momentum_products = _products(momentum_decay)
        momentum_writes = (momentum_products[..., rows, :] @ band) * token_gate
        memory_writes = (pushes @ momentum_products @ band) * token_gate
    else:
        momentum_writes = band[rows] * token_gate
        memory_writes = (pushes @ band) * token_gate
    step_writes = None
    if every_step:
        step_writes = pushes * gates.token_gate.unfold(-1, omega_window, 1).amax(-1)[..., None, :]
    return ChunkCoefficients(
        kept_memory=retention.cumprod(-1)[..., rows],
        pushed_momentum=(pushes * kept_momentum[..., None, :]).sum(-1),
        kept_momentum=kept_momentum[..., rows],
        memory_writes=memory_writes,
        momentum_writes=momentum_writes,
        mean_push=(gates.token_gate[..., before:] * inner_lr).mean(-1),
        step_writes=step_writes,
    )


def _products(factors: Tensor) -> Tensor:
    """[..., b] -> [..., b, b]: entry [t, n] is the product of factors n+1..t, and 0 above the diagonal."""
    length = factors.shape[-1]
    later = torch.ones(length, length, dtype=torch.bool, device=factors.device).tril(-1)
    return torch.where(later, factors[..., :, None], factors.new_ones(())).cumprod(-2).tril()


def _window_band(chunk: int, omega_window: int, like: Tensor) -> Tensor:
    """[b, c - 1 + b]: entry [m, i] is 1 where column i is among the omega_window tokens up to token m."""
    band = torch.ones(chunk, chunk + omega_window - 1, dtype=like.dtype, device=like.device)
    return band.triu().tril(omega_window - 1)

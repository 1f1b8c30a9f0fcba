"""The chunk form of the plain delta rule: a matrix memory, read at the chunk's first, moved by one chunk's gradients.

    y = Q M;   M <- a M - X^T (w * slope(X M, V))         X, Q the features of a chunk's keys and queries, w its writes

All but M is made for many chunks at once; what follows from chunk to chunk is two products: what keys and queries read
in the memory together, and the write. Same results as the chunk form of any other rule, up to the order of sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atlas_model.config import MemoryConfig
from atlas_model.gates import Gates
from atlas_model.memory.coefficients import ChunkCoefficients, chunk_coefficients
from atlas_model.memory.layout import ChunkLayout
from atlas_model.memory.rule import MemoryRule
from atlas_model.memory.step_bound import bound_by_keys, push_limits
from atlas_model.memory.update import decayed

# Tokens whose features are made at once: enough to share the calls, few enough to be in the cache when they are read.
_SPAN_NUM_TOKENS = 512


def is_delta_rule(config: MemoryConfig) -> bool:
    """Whether `delta_chunks` computes what this configuration asks for."""
    return (
        (config.network, config.rule, config.read_granularity) == ("matrix", "gd", "chunk")
        and config.omega_window == 1
        and config.max_momentum_decay == 0
    )


def delta_chunks(
    rule: MemoryRule,
    layout: ChunkLayout,
    memory: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    stacked_gates: Tensor,
) -> tuple[Tensor, Tensor]:
    """Reads and writes whole chunks, as the layout has placed them, [B, H, num_chunks * size, d].

    memory: the matrix before them, [B, H, num_features, value_width]. Returns what was read, [B, H, num_chunks * size,
    value_width], and the matrix after each row's last full chunk; the very `memory` where no chunk ends.
    """
    size, objective = layout.size, rule.objective
    # A graph of gradients needs every matrix on the way; without one they can all be the same.
    add_product = Tensor.baddbmm if torch.is_grad_enabled() else Tensor.baddbmm_
    if layout.num_full_of_some and not torch.is_grad_enabled():
        memory = memory.clone(memory_format=torch.contiguous_format)
    reads: list[Tensor] = []
    num_tokens = max(1, _SPAN_NUM_TOKENS // size) * size
    for start in range(0, queries.shape[2], num_tokens):
        span = slice(start, start + num_tokens)
        both = torch.cat([x[:, :, span].unflatten(2, (-1, size)) for x in (keys, queries)], dim=3)
        rows = rule.feature_map(both.flatten(2, 3)).unflatten(2, (-1, 2 * size))
        coefficients = _coefficients(rule, layout, start // size, stacked_gates[:, :, span], rows[:, :, :, :size])
        # NOTE: one unbind for all chunks; indexing each would make the backward fill the whole tensor once per chunk.
        chunks = zip(
            rows.flatten(0, 1).unbind(1),
            values[:, :, span].unflatten(2, (-1, size)).flatten(0, 1).unbind(1),
            coefficients.memory_writes.mT.flatten(0, 1).unbind(1),
            coefficients.kept_memory.unbind(2),
            strict=True,
        )
        for chunk_rows, chunk_values, writes, kept in chunks:
            read = torch.bmm(chunk_rows, memory.flatten(0, 1))
            if len(reads) < layout.num_full_of_some:
                memory = decayed(rule, "w", memory, kept[..., None])
                step = objective.slope(read[:, :size], chunk_values) * writes
                moved = add_product(memory.flatten(0, 1), chunk_rows[:, :size].mT, step, alpha=-1.0)
                memory = moved.view(memory.shape)
            reads.append(read[:, size:])
    return torch.cat(reads, dim=1).unflatten(0, queries.shape[:2]), memory


def _coefficients(
    rule: MemoryRule, layout: ChunkLayout, first: int, stacked_gates: Tensor, features: Tensor
) -> ChunkCoefficients:
    """Of a span's chunks, the first of which has index `first`, bounded; features of their keys [B, H, n, size, f].

    In a row in which a chunk does not end it writes nothing and keeps everything.
    """
    coefficients = chunk_coefficients(
        Gates.unstack(stacked_gates.unflatten(2, (-1, layout.size))),
        omega_window=1,
        last_row_only=True,
        carries_momentum=False,
        every_step=False,
    )
    coefficients, _ = bound_by_keys(rule, coefficients, push_limits(rule, coefficients), features)
    num_chunks = features.shape[2]
    if first + num_chunks <= layout.num_full_of_all:
        return coefficients
    ends = torch.stack([layout.ends_chunk(first + index) for index in range(num_chunks)], dim=1)
    return coefficients.where(ends[:, None])

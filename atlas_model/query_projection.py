"""Queries brought onto what was written: TNT's query-key projection (arXiv 2511.07343, section 3).

A memory is trained on keys and asked with queries, which may lie elsewhere. Each query is multiplied by the sum of
k k^T over the keys that were written, and scaled back to length 1:

    P_t = alpha_t P_{t-1} + gamma_t k_t k_t^T          q_t <- P_t q_t / |P_t q_t|

TNT begins the sum anew where its local memories are reset; ours never are, so it holds what the memory holds: a key
counts as far as its token_gate let it be written, and decays as the memory does (decided here). Before anything is
written all queries are 0, and read nothing.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from atlas_model.gates import NEUTRAL_GATES, Gates
from atlas_model.memory import MemoryInputs
from atlas_model.memory.coefficients import chunk_coefficients

_BLOCK_NUM_TOKENS = 32


def project_queries(inputs: MemoryInputs, projection: Tensor, lengths: Tensor | None) -> tuple[MemoryInputs, Tensor]:
    """The inputs with projected queries, and P after each row's last real token.

    projection: P before the first token, [B, H, key_width, key_width]. lengths: int64 [B], how many of the T tokens are
    real; None means all.
    """
    gates = inputs.gates.stack()
    if lengths is not None:
        is_real = torch.arange(gates.shape[2], device=gates.device) < lengths[:, None]
        gates = torch.where(is_real[:, None, :, None], gates, gates.new_tensor(NEUTRAL_GATES))
    projected = []
    for queries, keys, block_gates in zip(
        inputs.queries.split(_BLOCK_NUM_TOKENS, dim=2),
        inputs.keys.split(_BLOCK_NUM_TOKENS, dim=2),
        gates.split(_BLOCK_NUM_TOKENS, dim=2),
        strict=True,
    ):
        token_gate, retention, _, _ = block_gates.unbind(-1)
        ones = torch.ones_like(token_gate)
        sums = chunk_coefficients(
            Gates(token_gate, retention, ones, 0 * ones),
            omega_window=1,
            last_row_only=False,
            carries_momentum=False,
            every_step=False,
        )
        kept = (queries @ projection) * sums.kept_memory[..., None]
        projected.append(kept + (sums.memory_writes * (queries @ keys.mT)) @ keys)
        last = sums.last()
        projection = projection * last.kept_memory[..., None] + keys.mT @ (keys * last.memory_writes.mT)
    return replace(inputs, queries=normalize(torch.cat(projected, dim=2), dim=-1)), projection


def projection_products(key_width: int, num_tokens: int = _BLOCK_NUM_TOKENS) -> int:
    """Multiplications of one head a token, in a call of `num_tokens`; of a longer one they are the same."""
    block = min(num_tokens, _BLOCK_NUM_TOKENS)
    return 2 * key_width * (key_width + block) + block * block

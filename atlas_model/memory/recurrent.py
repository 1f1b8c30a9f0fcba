"""The recurrent form: one token a row. Decode.

The factors of the open chunk are recomputed from its keys and values, so the state holds nothing that a snapshot does
not. What the chunk's missing tokens would add stands in later rows and columns of the coefficients, not looked at.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atlas_model.gates import Gates
from atlas_model.memory.chunk import keep_unless
from atlas_model.memory.coefficients import chunk_coefficients
from atlas_model.memory.rule import MemoryInputs, MemoryRule, MemoryState
from atlas_model.memory.step_bound import bound_by_keys, push_limits, step_scale
from atlas_model.memory.update import ChunkUpdate, TokenMuonUpdate, chunk_update


def recurrent(
    rule: MemoryRule, inputs: MemoryInputs, state: MemoryState, position: Tensor
) -> tuple[Tensor, MemoryState]:
    """Read and learn one token a row (T = 1); rows may stand anywhere in their chunk.

    position: int64 [B], tokens fed before. Returns [B, H, 1, value_width] and the state after the token.
    """
    size, before = rule.config.memory_chunk_size, rule.config.omega_window - 1
    phase = position % size
    slots = torch.arange(before + size, device=position.device)
    is_new = (slots == before + phase[:, None])[:, None, :, None]

    def insert(buffered: Tensor, new: Tensor) -> Tensor:
        room = new.new_zeros(*new.shape[:2], 1, new.shape[3])
        return torch.where(is_new, new, torch.cat([buffered.to(new.dtype), room], dim=2))

    keys, values = insert(state.keys, inputs.keys), insert(state.values, inputs.values)
    gates = insert(state.gates, inputs.gates.stack())
    update = _update(rule, state, keys, values, Gates.unstack(gates), phase)
    outputs = update.read(rule.feature_map(inputs.queries), inputs.queries)

    full = phase == size - 1
    memory, momentum = state.memory, state.momentum
    if bool(full.any()):
        new_memory, new_momentum = update.commit()
        memory, momentum = keep_unless(full, new_memory, memory), keep_unless(full, new_momentum, momentum)
    rows_full = full[:, None, None, None]

    def remaining(extended: Tensor, old: Tensor) -> Tensor:
        """Without the last place; where the chunk was full, its end becomes the window of the next."""
        length = old.shape[2]
        start = extended.shape[2] - before
        window = torch.cat(
            [extended[:, :, start:], extended.new_zeros(*old.shape[:2], length - before, old.shape[3])], 2
        )
        return torch.where(rows_full, window, extended[:, :, :length]).to(old.dtype)

    new_state = MemoryState(
        memory, momentum, remaining(keys, state.keys), remaining(values, state.values), remaining(gates, state.gates)
    )
    return outputs, new_state


def _update(
    rule: MemoryRule, state: MemoryState, keys: Tensor, values: Tensor, gates: Gates, phase: Tensor
) -> ChunkUpdate:
    """The open chunk up to each row's new token, which stands at `phase`."""
    every_step = rule.config.muon_granularity == "token"
    coefficients = chunk_coefficients(
        gates,
        rule.config.omega_window,
        last_row_only=False,
        carries_momentum=rule.carries_momentum,
        every_step=every_step,
    )
    features = rule.feature_map(keys)
    factors = rule.factors(features, keys, values, state.memory)
    if every_step:
        return TokenMuonUpdate.at_anchor(rule, state.memory, state.momentum, factors, coefficients).row(phase)
    coefficients = coefficients.row(phase)
    pushes = push_limits(rule, coefficients)
    coefficients, key_norm = bound_by_keys(rule, coefficients, pushes, features)
    scale = step_scale(rule, state.memory, features, factors, pushes, key_norm)
    return chunk_update(rule, state.memory, state.momentum, factors, coefficients, scale)

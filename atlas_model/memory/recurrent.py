"""The recurrent form: one token a row. Decode.

It has parts, so that a step moves only what it changes. `read_token` and `insertions` are every token's, of static
shapes; `commit` is of the rows whose chunk ends, and of those alone. In between a token waits in the buffers of the
open chunk. Where tokens read their own memory the factors of the open chunk are recomputed from its keys and values,
so the state holds nothing that a snapshot does not; what the chunk's missing tokens would add stands in later rows and
columns of the coefficients, not looked at.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atlas_model.changes import Change, Insertion, Rows, flat_places
from atlas_model.config import MemoryConfig
from atlas_model.gates import Gates
from atlas_model.memory.coefficients import chunk_coefficients
from atlas_model.memory.rule import MemoryInputs, MemoryRule, MemoryState, buffer_length
from atlas_model.memory.step_bound import bound_by_keys, push_limits, step_scale
from atlas_model.memory.update import ChunkUpdate, TokenMuonUpdate, chunk_update


def recurrent(
    rule: MemoryRule, inputs: MemoryInputs, state: MemoryState, position: Tensor
) -> tuple[Tensor, MemoryState]:
    """Read and learn one token a row (T = 1); rows may stand anywhere in their chunk.

    position: int64 [B], tokens fed before. Returns [B, H, 1, value_width] and the state after the token.
    """
    outputs = read_token(rule, inputs, state, position)
    tensors = state.named_tensors()
    changed: dict[str, Tensor] = {}
    steps: list[dict[str, Change]] = [
        insertions(inputs, inputs.gates.stack(), state, buffer_places(rule.config, position))
    ]
    ending = (position % rule.config.memory_chunk_size == rule.config.memory_chunk_size - 1).nonzero()[:, 0]
    if len(ending):
        steps.append(dict(commit(rule, inputs, state, ending)))
    for name, change in (pair for changes in steps for pair in changes.items()):
        changed.setdefault(name, tensors[name].clone(memory_format=torch.contiguous_format))
        change.write(changed[name])
    return outputs, MemoryState.from_named_tensors(tensors | changed)


def read_token(rule: MemoryRule, inputs: MemoryInputs, state: MemoryState, position: Tensor) -> Tensor:
    """What each row's new token reads, [B, H, 1, value_width]."""
    features = rule.feature_map(inputs.queries)
    if rule.config.read_granularity == "chunk":
        return rule.network.apply(features, inputs.queries, lambda name, x: x @ state.memory[name])
    size, before = rule.config.memory_chunk_size, rule.config.omega_window - 1
    phase = position % size
    slots = torch.arange(before + size, device=position.device)
    is_new = (slots == before + phase[:, None])[:, None, :, None]

    def insert(buffered: Tensor, new: Tensor) -> Tensor:
        room = new.new_zeros(*new.shape[:2], 1, new.shape[3])
        return torch.where(is_new, new, torch.cat([buffered.to(new.dtype), room], dim=2))

    keys, values = insert(state.keys, inputs.keys), insert(state.values, inputs.values)
    gates = Gates.unstack(insert(state.gates, inputs.gates.stack()))
    return _update(rule, state, keys, values, gates, phase).read(features, inputs.queries)


def buffer_places(config: MemoryConfig, position: Tensor) -> Tensor | None:
    """Where the new token of each row and head waits, int64 [B * H], in the buffers seen as [-1, d].

    None where they have no room for any. The place of a chunk's last token is arbitrary: its commit overwrites them.
    """
    length = buffer_length(config)
    if length == 0:
        return None
    place = (config.omega_window - 1 + position % config.memory_chunk_size).clamp(max=length - 1)
    return flat_places(place, config.num_heads, length)


def insertions(inputs: MemoryInputs, gates: Tensor, state: MemoryState, places: Tensor | None) -> dict[str, Change]:
    """The new tokens in the buffers of the open chunks, by name.

    gates: those of the inputs, stacked. places: as `buffer_places` has them.
    """
    if places is None:
        return {}
    new = {"keys": inputs.keys, "values": inputs.values, "gates": gates}
    return {name: Insertion(places, each.flatten(0, 2).to(state.keys.dtype)) for name, each in new.items()}


def commit(rule: MemoryRule, inputs: MemoryInputs, state: MemoryState, rows: Tensor) -> dict[str, Rows]:
    """What the token that ends its chunk makes of each of these rows, int64 [R], by name: memory, momentum, buffers.

    inputs and state are of all B rows, the state as it was before the token.
    """
    before = rule.config.omega_window - 1
    state = state.gather(rows)

    def extend(buffered: Tensor, new: Tensor) -> Tensor:
        return torch.cat([buffered.to(new.dtype), new.index_select(0, rows)], dim=2)

    keys, values = extend(state.keys, inputs.keys), extend(state.values, inputs.values)
    gates = extend(state.gates, inputs.gates.stack())
    memory, momentum = _update(rule, state, keys, values, Gates.unstack(gates), None).commit()

    def window(extended: Tensor, old: Tensor) -> Tensor:
        """The chunk's end is the window of the next."""
        new = torch.zeros_like(old)
        new[:, :, :before] = extended[:, :, extended.shape[2] - before :]
        return new

    after = MemoryState(
        memory, momentum, window(keys, state.keys), window(values, state.values), window(gates, state.gates)
    )
    return {name: Rows(rows, tensor) for name, tensor in after.named_tensors().items()}


def _update(
    rule: MemoryRule, state: MemoryState, keys: Tensor, values: Tensor, gates: Gates, phase: Tensor | None
) -> ChunkUpdate:
    """The chunk up to each row's token at `phase`, int64 [B]; None: all of it, as a commit needs it."""
    every_step = rule.config.muon_granularity == "token"
    coefficients = chunk_coefficients(
        gates,
        rule.config.omega_window,
        last_row_only=phase is None,
        carries_momentum=rule.carries_momentum,
        every_step=every_step,
    )
    features = rule.feature_map(keys)
    factors = rule.factors(features, keys, values, state.memory)
    if every_step:
        update = TokenMuonUpdate.at_anchor(rule, state.memory, state.momentum, factors, coefficients)
        return update if phase is None else update.row(phase)
    if phase is not None:
        coefficients = coefficients.row(phase)
    pushes = push_limits(rule, coefficients)
    coefficients, key_norm = bound_by_keys(rule, coefficients, pushes, features)
    scale = step_scale(rule, state.memory, features, factors, pushes, key_norm)
    return chunk_update(rule, state.memory, state.momentum, factors, coefficients, scale)

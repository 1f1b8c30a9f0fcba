"""The chunk form: many tokens at once, a chunk's work as a few masked matrix products. Training and prefill.

Any rule; the plain delta rule, which needs the fewest products, has a form of its own in `delta`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

from atlas_model.gates import NEUTRAL_GATES, Gates
from atlas_model.memory.coefficients import ChunkCoefficients, chunk_coefficients
from atlas_model.memory.delta import delta_chunks, is_delta_rule
from atlas_model.memory.layout import ChunkLayout
from atlas_model.memory.rule import MemoryInputs, MemoryRule, MemoryState
from atlas_model.memory.step_bound import bound_by_keys, push_limits, step_scale
from atlas_model.memory.update import chunk_update
from atlas_model.memory_networks import Weights

# Tokens whose features are made at once: enough to share the calls, few enough to be in the cache when they are read.
_SPAN_NUM_TOKENS = 256


def chunk(
    rule: MemoryRule,
    inputs: MemoryInputs,
    state: MemoryState,
    position: Tensor,
    lengths: Tensor | None = None,
) -> tuple[Tensor, MemoryState]:
    """Read and learn T tokens a row.

    position: int64 [B], tokens fed before. lengths: int64 [B], how many of the T columns are real; None means all.
    Returns what was read, [B, H, T, value_width] (arbitrary in the padding), and the state after each row's last
    real token. Exact for any split of the tokens into calls.
    """
    layout = ChunkLayout.of(rule, inputs, position, lengths)
    keys = layout.place(state.keys, inputs.keys)
    values = layout.place(state.values, inputs.values)
    stacked_gates = layout.place(state.gates, inputs.gates.stack(), NEUTRAL_GATES)
    queries = layout.place(state.keys, inputs.queries)[:, :, layout.before :]
    if is_delta_rule(rule.config):
        outputs, matrix = delta_chunks(rule, layout, state.memory["w"], queries, keys, values, stacked_gates)
        memory, momentum = {"w": matrix}, state.momentum
    else:
        outputs, memory, momentum = _chunks(rule, layout, state, queries, keys, values, stacked_gates)
    new_state = MemoryState(
        memory=memory,
        momentum=momentum,
        keys=layout.buffer(keys, state.keys),
        values=layout.buffer(values, state.values),
        gates=layout.buffer(stacked_gates, state.gates),
    )
    return layout.new_tokens(outputs), new_state


def _chunks(
    rule: MemoryRule,
    layout: ChunkLayout,
    state: MemoryState,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    stacked_gates: Tensor,
) -> tuple[Tensor, Weights, Weights]:
    """What is read in all chunks, and memory and momentum after each row's last full one."""
    memory, momentum = state.memory, state.momentum
    outputs: list[Tensor] = []
    for index, work in enumerate(_prepared(rule, layout, keys, values, queries, stacked_gates)):
        factors = rule.factors(work.features, work.keys, work.values, memory)
        scale = step_scale(rule, memory, work.features, factors, work.pushes, work.key_norm)
        update = chunk_update(rule, memory, momentum, factors, work.coefficients, scale)
        outputs.append(update.read(work.query_features, work.queries))
        if index < layout.num_full_of_some:
            new_memory, new_momentum = update.commit()
            if index < layout.num_full_of_all:
                memory, momentum = new_memory, new_momentum
            else:
                full = layout.ends_chunk(index)
                memory, momentum = keep_unless(full, new_memory, memory), keep_unless(full, new_momentum, momentum)
    return torch.cat(outputs, dim=2), memory, momentum


@dataclass(frozen=True, slots=True)
class _Prepared:
    """All of one chunk that does not depend on the memory; keys with the window's before them, queries its own."""

    features: Tensor
    keys: Tensor
    values: Tensor
    query_features: Tensor
    queries: Tensor
    coefficients: ChunkCoefficients
    pushes: Tensor
    key_norm: Tensor | None


def _prepared(
    rule: MemoryRule, layout: ChunkLayout, keys: Tensor, values: Tensor, queries: Tensor, stacked_gates: Tensor
) -> Iterator[_Prepared]:
    """The chunks in their order, made a span at a time: many at once, and few enough to stay in the cache."""
    size, before = layout.size, layout.before

    def chunks(extended: Tensor) -> Tensor:
        return extended.unfold(2, before + size, size).transpose(-1, -2)

    def own_chunks(placed: Tensor) -> Tensor:
        split: Tensor = placed.unflatten(2, (-1, size))
        return split

    span = max(1, _SPAN_NUM_TOKENS // size) * size
    for start in range(0, queries.shape[2], span):
        own = slice(start, start + span)
        extended = slice(start, start + span + before)
        features = chunks(rule.feature_map(keys[:, :, extended]))
        coefficients = chunk_coefficients(
            Gates.unstack(chunks(stacked_gates[:, :, extended])),
            rule.config.omega_window,
            last_row_only=rule.config.read_granularity == "chunk",
            carries_momentum=rule.carries_momentum,
            every_step=rule.config.muon_granularity == "token",
        )
        pushes = push_limits(rule, coefficients)
        coefficients, key_norm = bound_by_keys(rule, coefficients, pushes, features)
        # NOTE: one unbind for all chunks; indexing each would make the backward fill the whole tensor once per chunk.
        yield from map(
            _Prepared,
            features.unbind(2),
            chunks(keys[:, :, extended]).unbind(2),
            chunks(values[:, :, extended]).unbind(2),
            own_chunks(rule.feature_map(queries[:, :, own])).unbind(2),
            own_chunks(queries[:, :, own]).unbind(2),
            coefficients.chunks(),
            pushes.unbind(2),
            repeat(None) if key_norm is None else key_norm.unbind(2),
        )


def keep_unless(rows: Tensor, new: Weights, old: Weights) -> Weights:
    """Take the new matrices in the rows that are True, [B] bool, and the old ones elsewhere."""
    if bool(rows.all()):
        return new
    chosen = rows[:, None, None, None]
    return {name: torch.where(chosen, weights, old[name]) for name, weights in new.items()}

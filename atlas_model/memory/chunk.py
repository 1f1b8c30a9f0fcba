"""The chunk form: many tokens at once, a chunk's work as a few masked matrix products. Training and prefill.

Rows of a batch may stand anywhere in their chunk and may be of different length (right padding). Each row's open
chunk is laid out first, then its new tokens, then tokens that change nothing, so that all chunks have one shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

from atlas_model.gates import NEUTRAL_GATES, Gates
from atlas_model.memory.coefficients import ChunkCoefficients, chunk_coefficients
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
    layout = _Layout.of(rule, inputs, position, lengths)
    keys = layout.place(state.keys, inputs.keys)
    values = layout.place(state.values, inputs.values)
    stacked_gates = layout.place(state.gates, inputs.gates.stack(), NEUTRAL_GATES)
    queries = layout.place(state.keys, inputs.queries)[:, :, layout.before :]
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

    new_state = MemoryState(
        memory=memory,
        momentum=momentum,
        keys=layout.buffer(keys, state.keys),
        values=layout.buffer(values, state.values),
        gates=layout.buffer(stacked_gates, state.gates),
    )
    return layout.new_tokens(torch.cat(outputs, dim=2)), new_state


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
    rule: MemoryRule, layout: _Layout, keys: Tensor, values: Tensor, queries: Tensor, stacked_gates: Tensor
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


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where each token of each row stands, counted from the start of the row's open chunk.

    phase: [B], tokens in the open chunk before the call. total: [B], phase + new tokens.
    num_full_of_some, num_full_of_all: how many chunks end in the call, of the row with the most and with the fewest.
    aligned: all rows start and end on a chunk's border, so nothing needs to be moved.
    """

    size: int
    before: int
    num_new: int
    num_chunks: int
    phase: Tensor
    total: Tensor
    num_full_of_some: int
    num_full_of_all: int
    aligned: bool

    @classmethod
    def of(cls, rule: MemoryRule, inputs: MemoryInputs, position: Tensor, lengths: Tensor | None) -> _Layout:
        size = rule.config.memory_chunk_size
        num_new = inputs.keys.shape[2]
        phase = position % size
        total = phase + (num_new if lengths is None else lengths)
        longest, shortest = int(total.max()), int(total.min())
        return cls(
            size=size,
            before=rule.config.omega_window - 1,
            num_new=num_new,
            num_chunks=max(1, -(-longest // size)),
            phase=phase,
            total=total,
            num_full_of_some=longest // size,
            num_full_of_all=shortest // size,
            aligned=lengths is None and num_new % size == 0 and not bool(phase.any()),
        )

    def place(self, buffered: Tensor, new: Tensor, filler: tuple[float, ...] = (0.0,)) -> Tensor:
        """Window, open chunk, new tokens, filler: [B, H, before + num_chunks * size, d]."""
        buffered = buffered.to(new.dtype)
        window, opened = buffered[:, :, : self.before], buffered[:, :, self.before :]
        if self.aligned:
            return torch.cat([window, new], dim=2)
        fill = new.new_tensor(filler).expand(*new.shape[:2], 1, new.shape[3])
        source = torch.cat([opened, new, fill], dim=2)
        slots = torch.arange(self.num_chunks * self.size, device=new.device)
        phase, total = self.phase[:, None], self.total[:, None]
        from_new = slots - phase + opened.shape[2]
        index = torch.where(slots < phase, slots, torch.where(slots < total, from_new, source.shape[2] - 1))
        return torch.cat([window, _gather(source, index)], dim=2)

    def new_tokens(self, outputs: Tensor) -> Tensor:
        """The outputs of the call's own tokens, [B, H, T, d]."""
        if self.aligned:
            return outputs
        index = self.phase[:, None] + torch.arange(self.num_new, device=outputs.device)
        return _gather(outputs, index.clamp(max=outputs.shape[2] - 1))

    def ends_chunk(self, index: int) -> Tensor:
        return self.total >= (index + 1) * self.size

    def buffer(self, extended: Tensor, old: Tensor) -> Tensor:
        """The window and the open chunk after the call, in the buffer's dtype and zero where unused."""
        slots = torch.arange(old.shape[2], device=extended.device)
        opened = self.total % self.size
        index = (self.total - opened)[:, None] + slots
        used = slots < self.before + opened[:, None]
        kept = _gather(extended, index.clamp(max=extended.shape[2] - 1))
        return torch.where(used[:, None, :, None], kept, kept.new_zeros(())).to(old.dtype)


def _gather(source: Tensor, index: Tensor) -> Tensor:
    """Pick tokens: source [B, H, S, d], index [B, L] -> [B, H, L, d]."""
    index = index[:, None, :, None].expand(-1, source.shape[1], -1, source.shape[3])
    return source.gather(2, index)

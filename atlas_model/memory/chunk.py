"""The chunk form: many tokens at once, a chunk's work as a few masked matrix products. Training and prefill.

Rows of a batch may stand anywhere in their chunk and may be of different length (right padding). Each row's open
chunk is laid out first, then its new tokens, then tokens that change nothing, so that all chunks have one shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atlas_model.gates import NEUTRAL_GATES, Gates
from atlas_model.memory.coefficients import chunk_coefficients
from atlas_model.memory.rule import MemoryInputs, MemoryRule, MemoryState
from atlas_model.memory.step_bound import key_norms, push_limits, step_scale
from atlas_model.memory.update import chunk_update
from atlas_model.memory_networks import Weights


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
    size, before = rule.config.memory_chunk_size, rule.config.omega_window - 1
    keys = layout.place(state.keys, inputs.keys)
    values = layout.place(state.values, inputs.values)
    stacked_gates = layout.place(state.gates, inputs.gates.stack(), NEUTRAL_GATES)
    queries = layout.place(state.keys, inputs.queries)[:, :, before:]

    def chunks(extended: Tensor) -> Tensor:
        return extended.unfold(2, before + size, size).transpose(-1, -2)

    features = chunks(rule.feature_map(keys))
    coefficients = chunk_coefficients(
        Gates.unstack(chunks(stacked_gates)),
        rule.config.omega_window,
        last_row_only=rule.config.read_granularity == "chunk",
        every_step=rule.config.muon_granularity == "token",
    )
    pushes = push_limits(rule, coefficients)
    # NOTE: one unbind for all chunks; indexing each would make the backward fill the whole tensor once per chunk.
    per_chunk = zip(
        features.unbind(2),
        chunks(keys).unbind(2),
        chunks(values).unbind(2),
        rule.feature_map(queries).unflatten(2, (-1, size)).unbind(2),
        queries.unflatten(2, (-1, size)).unbind(2),
        coefficients.chunks(),
        pushes.unbind(2),
        key_norms(rule, pushes, features),
        strict=True,
    )
    memory, momentum = state.memory, state.momentum
    outputs: list[Tensor] = []
    for index, (x, key, value, query_features, query, scalars, push, key_norm) in enumerate(per_chunk):
        factors = rule.factors(x, key, value, memory)
        scale = step_scale(rule, memory, x, factors, push, key_norm)
        update = chunk_update(rule, memory, momentum, factors, scalars, scale)
        outputs.append(update.read(query_features, query))
        full = layout.ends_chunk(index)
        if bool(full.any()):
            new_memory, new_momentum = update.commit()
            memory, momentum = keep_unless(full, new_memory, memory), keep_unless(full, new_momentum, momentum)

    new_state = MemoryState(
        memory=memory,
        momentum=momentum,
        keys=layout.buffer(keys, state.keys),
        values=layout.buffer(values, state.values),
        gates=layout.buffer(stacked_gates, state.gates),
    )
    return layout.new_tokens(torch.cat(outputs, dim=2)), new_state


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
    aligned: all rows start and end on a chunk's border, so nothing needs to be moved.
    """

    size: int
    before: int
    num_new: int
    num_chunks: int
    phase: Tensor
    total: Tensor
    aligned: bool

    @classmethod
    def of(cls, rule: MemoryRule, inputs: MemoryInputs, position: Tensor, lengths: Tensor | None) -> _Layout:
        size = rule.config.memory_chunk_size
        num_new = inputs.keys.shape[2]
        phase = position % size
        total = phase + (num_new if lengths is None else lengths)
        return cls(
            size=size,
            before=rule.config.omega_window - 1,
            num_new=num_new,
            num_chunks=max(1, -(-int(total.max()) // size)),
            phase=phase,
            total=total,
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

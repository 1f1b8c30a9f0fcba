"""Where the tokens of a call stand in the chunks of their rows, and the way there and back.

Rows may stand anywhere in their chunk and may be of different length (right padding). Each row's open chunk is laid out
first, then its new tokens, then tokens that change nothing, so that all chunks have one shape. Rows in step, as a row
alone always is, are cut and joined; others are gathered token by token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atlas_model.memory.rule import MemoryInputs, MemoryRule


@dataclass(frozen=True, slots=True)
class ChunkLayout:
    """Positions are counted from the start of each row's open chunk.

    phase: int64 [B], tokens in the open chunk before the call. total: int64 [B], phase + new tokens.
    num_full_of_some, num_full_of_all: how many chunks end in the call, of the row with the most and with the fewest.
    common_phase: the phase of all rows where they are in step, each with num_new real tokens; else None.
    """

    size: int
    before: int
    num_new: int
    num_chunks: int
    phase: Tensor
    total: Tensor
    num_full_of_some: int
    num_full_of_all: int
    common_phase: int | None

    @classmethod
    def of(cls, rule: MemoryRule, inputs: MemoryInputs, position: Tensor, lengths: Tensor | None) -> ChunkLayout:
        """position and lengths: as in `chunk`."""
        size = rule.config.memory_chunk_size
        num_new = inputs.keys.shape[2]
        phase = position % size
        total = phase + (num_new if lengths is None else lengths)
        phases, totals = torch.stack([phase, total]).tolist()
        first, longest, shortest = phases[0], max(totals), min(totals)
        in_step = phases == [first] * len(phases) and shortest == longest == first + num_new
        return cls(
            size=size,
            before=rule.config.omega_window - 1,
            num_new=num_new,
            num_chunks=max(1, -(-longest // size)),
            phase=phase,
            total=total,
            num_full_of_some=longest // size,
            num_full_of_all=shortest // size,
            common_phase=first if in_step else None,
        )

    def place(self, buffered: Tensor, new: Tensor, filler: tuple[float, ...] = (0.0,)) -> Tensor:
        """Window, open chunk, new tokens, filler: [B, H, before + num_chunks * size, d]."""
        buffered = buffered.to(new.dtype)
        fill = new.new_tensor(filler).expand(*new.shape[:2], 1, new.shape[3])
        if self.common_phase is not None:
            num_held = self.before + self.common_phase
            num_fill = self.num_chunks * self.size - self.common_phase - self.num_new
            if num_held == num_fill == 0:
                return new
            return torch.cat([buffered[:, :, :num_held], new, fill.expand(-1, -1, num_fill, -1)], dim=2)
        window, opened = buffered[:, :, : self.before], buffered[:, :, self.before :]
        source = torch.cat([opened, new, fill], dim=2)
        slots = torch.arange(self.num_chunks * self.size, device=new.device)
        phase, total = self.phase[:, None], self.total[:, None]
        from_new = slots - phase + opened.shape[2]
        index = torch.where(slots < phase, slots, torch.where(slots < total, from_new, source.shape[2] - 1))
        placed = _pick(source, index)
        return torch.cat([window, placed], dim=2) if self.before else placed

    def new_tokens(self, outputs: Tensor) -> Tensor:
        """The outputs of the call's own tokens, [B, H, T, d]; arbitrary in the padding."""
        if self.common_phase is not None:
            return outputs[:, :, self.common_phase : self.common_phase + self.num_new]
        index = self.phase[:, None] + torch.arange(self.num_new, device=outputs.device)
        return _pick(outputs, index.clamp(max=outputs.shape[2] - 1))

    def ends_chunk(self, index: int) -> Tensor:
        """In which rows the chunk of that index ends in the call, bool [B]."""
        return self.total >= (index + 1) * self.size

    def buffer(self, extended: Tensor, old: Tensor) -> Tensor:
        """The window and the open chunk after the call, in the buffer's dtype and zero where unused."""
        slots = torch.arange(old.shape[2], device=extended.device)
        opened = self.total % self.size
        index = (self.total - opened)[:, None] + slots
        used = slots < self.before + opened[:, None]
        kept = _gather(extended, index.clamp(max=extended.shape[2] - 1))
        return torch.where(used[:, None, :, None], kept, kept.new_zeros(())).to(old.dtype)


def _pick(source: Tensor, index: Tensor) -> Tensor:
    """Many tokens: source [B, H, S, d], index int64 [B, L] -> [B, H, L, d], each token copied as a whole."""
    batch_size, num_heads, num_tokens, width = source.shape
    first = torch.arange(batch_size * num_heads, device=index.device) * num_tokens
    rows = first.view(batch_size, num_heads, 1) + index[:, None]
    return source.reshape(-1, width).index_select(0, rows.flatten()).view(*rows.shape, width)


def _gather(source: Tensor, index: Tensor) -> Tensor:
    """A few tokens, wherever they lie: source [B, H, S, d], index int64 [B, L] -> [B, H, L, d]."""
    index = index[:, None, :, None].expand(-1, source.shape[1], -1, source.shape[3])
    return source.gather(2, index)

"""Attention within a segment, over what the memory holds for each token as well: the first half of a `mac` layer.

A token sees the persistent tokens, and for itself and the tokens before it in its segment what was read from the memory
for them and the tokens themselves (Titans, Eq 22-23). Titans reads for a whole segment at once; here a token sees no
reading for a later one, so that prefill and decode agree (decided here). Segments are counted from the start of the
session. Keys and queries are as in `SlidingWindowAttention`; persistent tokens have no place and are not turned.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from atlas_model.attention import AttentionState, rotary_angles, turn
from atlas_model.config import AtlasConfig, AttentionConfig


class ContextAttention(nn.Module):
    """[B, T, width] tokens and [B, T, value_inner_width] read for them -> [B, T, width]. T tokens of one segment."""

    def __init__(self, config: AtlasConfig, attention: AttentionConfig) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.segment = attention.window
        self.rotary_base = attention.rotary_base
        self.head_width = config.key_inner_width // attention.num_heads
        self.widths = (config.key_inner_width, config.key_inner_width, config.value_inner_width)
        self.project = nn.Linear(config.width, sum(self.widths), bias=False)
        self.context_project = nn.Linear(config.value_inner_width, sum(self.widths[1:]), bias=False)
        self.persistent = nn.Parameter(torch.randn(attention.num_persistent, config.width))
        self.log_scale = nn.Parameter(torch.full((attention.num_heads,), 2.3))
        self.out = nn.Linear(config.value_inner_width, config.width, bias=False)

    def forward(
        self, x: Tensor, context: Tensor, state: AttentionState, position: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, AttentionState]:
        """position: int64 [B], tokens fed before; lengths: real tokens per row, None for all of them."""
        num_new = x.shape[1]
        queries, keys, values = (self._heads(each) for each in self.project(x).split(self.widths, dim=-1))
        context_keys, context_values = map(self._heads, self.context_project(context).split(self.widths[1:], dim=-1))
        angles = rotary_angles(position, num_new, self.head_width, self.rotary_base)
        queries = normalize(queries, dim=-1) * self.log_scale.exp()[:, None]
        keys = turn(normalize(torch.cat([context_keys, keys], dim=2), dim=-1), angles)
        values = torch.cat([context_values, values], dim=2)

        phase = position % self.segment
        after = phase + (num_new if lengths is None else lengths)
        all_keys = self._insert(state.keys, keys, phase, after)
        all_values = self._insert(state.values, values, phase, after)
        slots = torch.arange(self.segment, device=x.device)
        seen = slots <= phase[:, None, None] + torch.arange(num_new, device=x.device)[:, None]
        scores = turn(queries, angles).transpose(1, 2) @ self._both(all_keys).mT
        scores = scores.masked_fill(~seen.repeat(1, 1, 2)[:, None], float("-inf"))

        _, persistent_keys, persistent_values = self.project(self.persistent).split(self.widths, dim=-1)
        persistent_keys = normalize(self._heads(persistent_keys), dim=-1).transpose(0, 1)
        scores = torch.cat([queries.transpose(1, 2) @ persistent_keys.mT, scores], dim=-1)
        persistent_values = self._heads(persistent_values).transpose(0, 1).expand(len(x), -1, -1, -1)
        mixed = scores.softmax(-1) @ torch.cat([persistent_values, self._both(all_values)], dim=2)

        kept = (slots[:-1] < (after % self.segment)[:, None])[:, :, None, None]
        new_state = AttentionState(
            (all_keys[:, :-1] * kept).to(state.keys.dtype), (all_values[:, :-1] * kept).to(state.values.dtype)
        )
        return self.out(mixed.transpose(1, 2).flatten(2)), new_state

    def _heads(self, x: Tensor) -> Tensor:
        split: Tensor = x.unflatten(-1, (self.num_heads, -1))
        return split

    def _both(self, x: Tensor) -> Tensor:
        """The memory's and the tokens' places one after the other: [B, segment, 2 h, d] -> [B, h, 2 segment, d]."""
        split: Tensor = x.unflatten(2, (2, self.num_heads))
        return split.permute(0, 3, 2, 1, 4).flatten(2, 3)

    def _insert(self, buffered: Tensor, new: Tensor, phase: Tensor, after: Tensor) -> Tensor:
        """The segment's tokens at their places, [B, segment, 2 h, d]; 0 where there is none yet."""
        # NOTE: rounded at birth, so that a token read from the state equals one that never left.
        new = new.to(buffered.dtype).to(new.dtype)
        slots = torch.arange(self.segment, device=new.device)
        source = (slots - phase[:, None]).clamp(0, new.shape[1] - 1)[:, :, None, None].expand(-1, -1, *new.shape[2:])
        is_new = (slots >= phase[:, None]) & (slots < after[:, None])
        held = pad(buffered.to(new.dtype), (0, 0, 0, 0, 0, 1))
        return torch.where(is_new[:, :, None, None], new.gather(1, source), held)

"""Sliding-window attention: each token sees itself and the `window` - 1 tokens before it, so its state is constant.

Queries and keys are l2-normalised, with a learned scale per head, and turned by rotary angles. An angle is computed in
float64 from the position: at position 1e7 a float32 angle is off by about a radian. The window is kept as a ring: keys
are turned already, so attention does not care for their order, and a step writes one place and moves none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad, scaled_dot_product_attention

from atlas_model.changes import Change, Insertion, flat_places
from atlas_model.config import AtlasConfig, AttentionConfig
from atlas_model.memory import TensorSpec


@dataclass(frozen=True, slots=True)
class AttentionState:
    """The last window - 1 tokens: keys (already turned) and values, [B, num_heads, window - 1, d].

    The token of position p stands at p % (window - 1); 0 where there is none yet. In `mac` those of the open segment
    in their order, [B, window - 1, 2 num_heads, d]: first the memory's, then the tokens'.
    """

    keys: Tensor
    values: Tensor


def attention_state_spec(config: AtlasConfig, attention: AttentionConfig, dtype: torch.dtype) -> dict[str, TensorSpec]:
    """The tensors of an AttentionState by name."""
    length, heads = attention.window - 1, attention.num_heads
    stored = (length, 2 * heads) if config.layout == "mac" else (heads, length)
    return {
        "keys": TensorSpec((*stored, config.key_inner_width // heads), dtype),
        "values": TensorSpec((*stored, config.value_inner_width // heads), dtype),
    }


@dataclass(frozen=True, slots=True)
class AttentionPlaces:
    """Where the new tokens of a step stand, one a row.

    cos, sin: of the angles of a head's pairs, [B, 1, d], the sine negative in the first half. unseen: bool
    [B, 1, 1, window - 1], where the ring has no token yet. ring: int64 [B * num_heads], where the new token goes in
    the ring seen as [-1, d]; None in a window of one token.
    """

    cos: Tensor
    sin: Tensor
    unseen: Tensor
    ring: Tensor | None

    @classmethod
    def of(cls, attention: AttentionConfig, head_width: int, position: Tensor, dtype: torch.dtype) -> Self:
        """position: int64 [B], tokens fed before. dtype: what the attention computes in."""
        length = attention.window - 1
        angles = rotary_angles(position, 1, head_width, attention.rotary_base)[:, 0]
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        return cls(
            cos=torch.cat([cos, cos], dim=-1),
            sin=torch.cat([-sin, sin], dim=-1),
            unseen=(torch.arange(length, device=position.device) >= position[:, None])[:, None, None],
            ring=flat_places(position % length, attention.num_heads, length) if length else None,
        )

    def turn(self, x: Tensor) -> Tensor:
        """As `turn`, for one token a row: [B, h, d]."""
        first, second = x.chunk(2, dim=-1)
        return torch.addcmul(x * self.cos, torch.cat([second, first], dim=-1), self.sin)


class SlidingWindowAttention(nn.Module):
    """[B, T, 2 key_inner_width] queries and keys, [B, T, value_inner_width] values -> as the values."""

    def __init__(self, config: AtlasConfig, attention: AttentionConfig) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.window = attention.window
        self.rotary_base = attention.rotary_base
        self.head_width = config.key_inner_width // attention.num_heads
        self.log_scale = nn.Parameter(torch.full((attention.num_heads,), 2.3))

    def forward(
        self,
        queries_keys: Tensor,
        values: Tensor,
        state: AttentionState,
        position: Tensor,
        lengths: Tensor | None,
    ) -> tuple[Tensor, AttentionState]:
        """position: int64 [B], tokens fed before; lengths: real tokens per row, None for all of them."""
        batch_size, num_new = values.shape[:2]
        angles = rotary_angles(position, num_new, self.head_width, self.rotary_base)
        turned = turn(normalize(queries_keys.unflatten(-1, (2 * self.num_heads, -1)), dim=-1), angles)
        queries, keys = turned.chunk(2, dim=2)
        queries = queries * self.log_scale.exp()[:, None]
        values = values.unflatten(-1, (self.num_heads, -1))
        # NOTE: rounded at birth, so that a token read from the state equals one that never left.
        keys, values = (x.to(state.keys.dtype).to(queries.dtype) for x in (keys, values))
        all_keys = torch.cat([_in_order(state.keys, position).to(keys.dtype), keys], dim=1)
        all_values = torch.cat([_in_order(state.values, position).to(values.dtype), values], dim=1)

        block = min(self.window, num_new)
        padding = -num_new % block
        span = block + self.window - 1
        blocked_queries = _padded(queries, padding).unflatten(1, (-1, block))
        num_blocks = blocked_queries.shape[1]
        mixed = scaled_dot_product_attention(
            blocked_queries.flatten(0, 1).transpose(1, 2),
            self._blocks(all_keys, padding, span, block),
            self._blocks(all_values, padding, span, block),
            attn_mask=self._mask(position, num_blocks, block, span).flatten(0, 1)[:, None],
            scale=1.0,
        )
        mixed = mixed.transpose(1, 2).reshape(batch_size, num_blocks * block, -1)[:, :num_new]
        num_real = torch.full_like(position, num_new) if lengths is None else lengths
        new_state = AttentionState(
            _as_ring(all_keys, self.window - 1, position, num_real).to(state.keys.dtype),
            _as_ring(all_values, self.window - 1, position, num_real).to(state.values.dtype),
        )
        return mixed, new_state

    def step(
        self, queries_keys: Tensor, values: Tensor, state: AttentionState, places: AttentionPlaces
    ) -> tuple[Tensor, dict[str, Change]]:
        """One token a row, [B, 2 key_inner] and [B, value_inner]: what it sees, [B, value_inner], and what it changes
        of the state."""
        dtype, heads, length = state.keys.dtype, self.num_heads, self.window - 1
        turned = places.turn(normalize(queries_keys.unflatten(-1, (2 * heads, -1)), dim=-1))
        queries = turned[:, :heads] * self.log_scale.exp()[:, None]
        new_keys, new_values = turned[:, heads:].to(dtype), values.unflatten(-1, (heads, -1)).to(dtype)
        keys, values = new_keys.to(queries.dtype), new_values.to(queries.dtype)
        scores = queries[:, :, None] @ state.keys.to(queries.dtype).mT
        own_score = (queries * keys).sum(-1)[:, :, None, None]
        weights = torch.cat([scores.masked_fill(places.unseen, float("-inf")), own_score], dim=-1).softmax(-1)
        held = weights[..., :length] @ state.values.to(queries.dtype)
        mixed = torch.addcmul(held[:, :, 0], weights[:, :, 0, length:], values)
        changes: dict[str, Change] = {}
        if places.ring is not None:
            changes["attention.keys"] = Insertion(places.ring, new_keys.flatten(0, 1))
            changes["attention.values"] = Insertion(places.ring, new_values.flatten(0, 1))
        return mixed.flatten(1), changes

    def _blocks(self, x: Tensor, padding: int, span: int, block: int) -> Tensor:
        """Every block's keys or values: [B, window - 1 + T, h, d] -> [B * blocks, h, span, d]."""
        unfolded = _padded(x, padding).unfold(1, span, block)
        return unfolded.flatten(0, 1).transpose(-1, -2)

    def _mask(self, position: Tensor, num_blocks: int, block: int, span: int) -> Tensor:
        """True where a query may look: [B, blocks, block, span]."""
        device = position.device
        distance = torch.arange(block, device=device)[:, None] - torch.arange(span, device=device) + self.window - 1
        in_window = (distance >= 0) & (distance < self.window)
        first = position[:, None] - (self.window - 1) + torch.arange(num_blocks, device=device) * block
        exists = first[:, :, None] + torch.arange(span, device=device) >= 0
        return in_window & exists[:, :, None, :]


def _padded(x: Tensor, padding: int) -> Tensor:
    """[B, T, h, d] with that many tokens of zeros after it."""
    return pad(x, (0, 0, 0, 0, 0, padding)) if padding else x


def _in_order(ring: Tensor, position: Tensor) -> Tensor:
    """The ring's tokens, the oldest first: [B, h, L, d] -> [B, L, h, d]."""
    length = ring.shape[2]
    index = (position[:, None] + torch.arange(length, device=ring.device)) % max(1, length)
    return _pick(ring, index).transpose(1, 2)


def _as_ring(extended: Tensor, length: int, position: Tensor, num_real: Tensor) -> Tensor:
    """The last `length` real tokens as a ring: [B, length + T, h, d] -> [B, h, length, d].

    extended: `length` tokens from before `position`, int64 [B], and T new ones, of which `num_real`, int64 [B], count.
    """
    slots = torch.arange(length, device=extended.device)
    index = num_real[:, None] + (slots - (position + num_real)[:, None]) % max(1, length)
    return _pick(extended.transpose(1, 2), index)


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """Pick tokens: x [B, h, S, d], index int64 [B, L] -> [B, h, L, d]."""
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def rotary_frequencies(head_width: int, base: float, device: torch.device | None = None) -> Tensor:
    """How far each pair of a head turns from one position to the next, in float64: [head_width / 2]."""
    steps = torch.arange(0, head_width, 2, device=device, dtype=torch.float64)
    return base ** (-steps / head_width)


def rotary_angles(position: Tensor, num_new: int, head_width: int, base: float) -> Tensor:
    """Angles of the tokens at position int64 [B] and the next ones, in float64: [B, T, 1, head_width / 2]."""
    frequencies = rotary_frequencies(head_width, base, position.device)
    positions = position[:, None] + torch.arange(num_new, device=position.device)
    return (positions.double()[..., None] * frequencies)[:, :, None]


def turn(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + d/2}) of [B, T, h, d] by its angle."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    turned = x * torch.cat([cos, cos], dim=-1)
    return torch.addcmul(turned, x.roll(x.shape[-1] // 2, -1), torch.cat([-sin, sin], dim=-1))

"""Sliding-window attention: each token sees itself and the `window` - 1 tokens before it, so its state is constant.

Queries and keys are l2-normalised, with a learned scale per head, and turned by rotary angles. An angle is computed in
float64 from the position: at position 1e7 a float32 angle is off by about a radian.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad, scaled_dot_product_attention

from atlas_model.config import AtlasConfig, AttentionConfig
from atlas_model.memory import TensorSpec
from atlas_model.ragged import tail


@dataclass(frozen=True, slots=True)
class AttentionState:
    """The last window - 1 tokens: keys (already turned) and values, [B, window - 1, num_heads, d].

    In `mac` those of the open segment, 0 where it has none yet, and 2 num_heads: first the memory's, then the tokens'.
    """

    keys: Tensor
    values: Tensor


def attention_state_spec(config: AtlasConfig, attention: AttentionConfig, dtype: torch.dtype) -> dict[str, TensorSpec]:
    """The tensors of an AttentionState by name."""
    length, heads = attention.window - 1, attention.num_heads
    stored = 2 * heads if config.layout == "mac" else heads
    return {
        "keys": TensorSpec((length, stored, config.key_inner_width // heads), dtype),
        "values": TensorSpec((length, stored, config.value_inner_width // heads), dtype),
    }


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
        all_keys = torch.cat([state.keys.to(keys.dtype), keys], dim=1)
        all_values = torch.cat([state.values.to(values.dtype), values], dim=1)

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
        length = self.window - 1
        new_state = AttentionState(
            tail(all_keys, lengths, length).to(state.keys.dtype), tail(all_values, lengths, length).to(state.keys.dtype)
        )
        return mixed, new_state

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


def rotary_angles(position: Tensor, num_new: int, head_width: int, base: float) -> Tensor:
    """Angles of the tokens at position int64 [B] and the next ones, in float64: [B, T, 1, head_width / 2]."""
    steps = torch.arange(0, head_width, 2, device=position.device, dtype=torch.float64)
    frequencies = base ** (-steps / head_width)
    positions = position[:, None] + torch.arange(num_new, device=position.device)
    return (positions.double()[..., None] * frequencies)[:, :, None]


def turn(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + d/2}) of [B, T, h, d] by its angle."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    turned = x * torch.cat([cos, cos], dim=-1)
    return torch.addcmul(turned, x.roll(x.shape[-1] // 2, -1), torch.cat([-sin, sin], dim=-1))

"""Where the rows of a step stand: what all its layers share, computed once from the position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from atlas_model.attention import AttentionPlaces
from atlas_model.config import AtlasConfig, MemoryConfig
from atlas_model.memory import buffer_places


@dataclass(frozen=True, slots=True)
class StepPlaces:
    """position: int64 [B], tokens fed before. attention: None without a sliding window.

    buffers: by memory_chunk_size, the `buffer_places` of the open chunk.
    """

    position: Tensor
    attention: AttentionPlaces | None
    buffers: dict[int, Tensor | None]

    @classmethod
    def of(cls, config: AtlasConfig, memories: list[MemoryConfig], position: Tensor, dtype: torch.dtype) -> Self:
        """memories: those of the layers that have one. dtype: what attention computes in."""
        attention = None
        if config.attention is not None and config.layout != "mac":
            head_width = config.key_inner_width // config.attention.num_heads
            attention = AttentionPlaces.of(config.attention, head_width, position, dtype)
        by_size = {memory.memory_chunk_size: memory for memory in memories}
        return cls(position, attention, {size: buffer_places(memory, position) for size, memory in by_size.items()})

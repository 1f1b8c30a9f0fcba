"""The model on the engine's slots, step by step, without scheduler, sampler and sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atlas_model.model import AtlasModel
from engine.config import EngineConfig
from engine.device.decode_steps import choose_decode_step
from engine.device.model_runner import ModelRunner
from engine.device.state_pool import StatePool

_GROUP_NUM_TOKENS = 4096


class Stepper:
    """Rows that have read more than the attention's window, each at a phase of its own in its open chunk.

    phases: for every row, how many tokens of its chunk it has read. Tokens are drawn at random. native_kernels: as in
    EngineConfig; `step` is what it has chosen, on CUDA without graphs.
    """

    def __init__(
        self, model: AtlasModel, phases: Sequence[int], device: torch.device, native_kernels: str = "auto"
    ) -> None:
        self._vocab_size = model.config.vocab_size
        self._generator = torch.Generator().manual_seed(0)
        self.pool = StatePool(model.config, len(phases), device)
        config = EngineConfig(device=str(device), cuda_graphs=False, native_kernels=native_kernels)
        self.step = choose_decode_step(model, self.pool, device, config)
        self._runner = ModelRunner(model, self.pool, device, self.step)
        self.slots = [self.pool.acquire() for _ in phases]
        initial = model.initial_state(1)
        for slot in self.slots:
            self.pool.load(slot, initial)
        period = chunk_period(model)
        window = 0 if model.config.attention is None else model.config.attention.window
        settled = period * (2 + window // period)
        self._positions = [settled + phase for phase in phases]
        rows = max(1, _GROUP_NUM_TOKENS // (settled + period))
        for start in range(0, len(phases), rows):
            group = slice(start, start + rows)
            self._runner.prefill(self.slots[group], [self._token_ids(settled + phase) for phase in phases[group]])

    def decode(self) -> Tensor:
        """One token for every row -> logits [B, V]."""
        logits = self._runner.decode(self.slots, self._token_ids(len(self.slots)), self._positions)
        self._go_on(1)
        return logits

    def prefill(self, num_tokens: int) -> None:
        """A piece of `num_tokens` for every row."""
        self._runner.prefill(self.slots, [self._token_ids(num_tokens) for _ in self.slots])
        self._go_on(num_tokens)

    def _go_on(self, num_tokens: int) -> None:
        self._positions = [position + num_tokens for position in self._positions]

    def _token_ids(self, num_tokens: int) -> list[int]:
        token_ids: list[int] = torch.randint(self._vocab_size, (num_tokens,), generator=self._generator).tolist()
        return token_ids


def chunk_period(model: AtlasModel) -> int:
    """After so many tokens all layers are where they were in their chunks: the longest chunk, whose divisors the others
    are."""
    config = model.config
    return max(config.memory_chunk_sizes or (config.memory.memory_chunk_size,))


def phases(model: AtlasModel, batch_size: int, *, is_aligned: bool) -> list[int]:
    """All rows at a chunk's border, or spread evenly over its tokens; a single one in its middle."""
    period = chunk_period(model)
    return [0 if is_aligned else (period // 2 + row * period // batch_size) % period for row in range(batch_size)]

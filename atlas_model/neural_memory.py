"""The memory of one layer as a module: its learned start, its features, and the norm on what is read."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from atlas_model.changes import Change, Rows, Whole
from atlas_model.config import MemoryConfig
from atlas_model.feature_map import FeatureMap
from atlas_model.memory import (
    MemoryInputs,
    MemoryRule,
    MemoryState,
    chunk,
    commit,
    insertions,
    memory_network,
    memory_state_spec,
    read_token,
    recurrent,
)
from atlas_model.query_projection import project_queries
from atlas_model.step_places import StepPlaces


class NeuralMemory(nn.Module):
    """The memory of one layer: its learned start, its features, and the norm on what is read."""

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__()
        self.config = config
        self.network = memory_network(config)
        self.feature_map = FeatureMap(config)
        heads = config.num_heads
        self.initial = nn.ParameterDict(
            {
                name: nn.Parameter(torch.empty(heads, *shape).normal_(std=1.0) * self.network.initial(name))
                for name, shape in self.network.shapes().items()
            }
        )
        self.read_scale = nn.Parameter(torch.ones(heads, config.value_width))

    def initial_state(self, batch_size: int, buffer_dtype: torch.dtype | None = None) -> MemoryState:
        """What a sequence that has read nothing carries. The buffers have the memory's own dtype unless told."""
        like = self.read_scale
        spec = memory_state_spec(self.config, like.dtype, buffer_dtype or like.dtype)
        tensors = {
            name: torch.zeros(batch_size, *each.shape, dtype=each.dtype, device=like.device)
            for name, each in spec.items()
        }
        return MemoryState(
            memory={name: weights.expand(batch_size, *weights.shape) for name, weights in self.initial.items()},
            momentum={name: tensors[f"momentum.{name}"] for name in self.initial if f"momentum.{name}" in tensors},
            keys=tensors["keys"],
            values=tensors["values"],
            gates=tensors["gates"],
            key_sum=tensors.get("key_sum"),
        )

    def rule(self, max_inner_lr: Tensor | None = None) -> MemoryRule:
        """What the forms of the memory compute with. max_inner_lr: as in `forward`."""
        max_inner_lr = torch.ones_like(self.read_scale[:, 0]) if max_inner_lr is None else max_inner_lr
        return MemoryRule(self.config, self.network, self.feature_map, max_inner_lr, dict(self.initial))

    def forward(
        self,
        inputs: MemoryInputs,
        state: MemoryState,
        position: Tensor,
        max_inner_lr: Tensor | None = None,
        lengths: Tensor | None = None,
        is_step: bool = False,
    ) -> tuple[Tensor, MemoryState]:
        """What each token reads, normalised, [B, T, value_inner_width], and the memory after the last of them.

        position: int64 [B], tokens fed before. max_inner_lr: [H], the largest inner_lr among the gates there can ever
        be, 1 unless told; the bounded step counts on it where there is momentum. lengths: int64 [B], how many of the T
        tokens are real, None for all. is_step: one token a row, in recurrent form.
        """
        key_sum = state.key_sum
        if key_sum is not None:
            inputs, key_sum = project_queries(inputs, key_sum, lengths)
        rule = self.rule(max_inner_lr)
        if is_step:
            read, state = recurrent(rule, inputs, state, position)
        else:
            read, state = chunk(rule, inputs, state, position, lengths)
        return self._normed(read), replace(state, key_sum=key_sum)

    def step(
        self, inputs: MemoryInputs, gates: Tensor, state: MemoryState, places: StepPlaces, max_inner_lr: Tensor
    ) -> tuple[Tensor, dict[str, Change]]:
        """As `forward` with is_step, but what changes of the state in place of all of it.

        gates: those of the inputs, stacked. Where a row's chunk ends, its `commit` is what is left to do.
        """
        changes = insertions(inputs, gates, state, places.buffers[self.config.memory_chunk_size])
        if state.key_sum is not None:
            inputs, key_sum = project_queries(inputs, state.key_sum, None)
            changes["key_sum"] = Whole(key_sum)
        if self.config.read_granularity == "chunk":
            features = self.feature_map.step(inputs.queries[:, :, 0])[:, :, None]
            read = self.network.apply(features, inputs.queries, lambda name, x: x @ state.memory[name])
            return self._normed(read), changes
        return self._normed(read_token(self.rule(max_inner_lr), inputs, state, places.position)), changes

    def commit(self, inputs: MemoryInputs, state: MemoryState, rows: Tensor, max_inner_lr: Tensor) -> dict[str, Rows]:
        """What the token that ends its chunk makes of each of these rows, int64 [R]."""
        return commit(self.rule(max_inner_lr), inputs, state, rows)

    def read_anchor(self, queries: Tensor, state: MemoryState) -> Tensor:
        """What the memory of the open chunk's start holds for queries [B, H, T, key_width], normalised as in `forward`.

        Nothing is learned.
        """
        features = self.feature_map(queries)
        return self._normed(self.network.apply(features, queries, lambda name, x: x @ state.memory[name]))

    def _normed(self, read: Tensor) -> Tensor:
        normed = rms_norm(read, read.shape[-1:], eps=self.config.read_norm_eps) * self.read_scale[:, None]
        return normed.transpose(1, 2).flatten(2)

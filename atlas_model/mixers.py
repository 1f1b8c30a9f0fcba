"""The two ways in which a layer mixes tokens: through its memory, and through attention alone.

Mixer: linear queries, keys and values; a short causal convolution on each; the memory on l2-normalised SiLU of them; in
`mag` sliding-window attention on the same convolved vectors beside it. The output is
W_o concat(attention, memory * sigmoid(gate)), so the memory can bring content by itself.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, silu

from atlas_model.attention import AttentionState, SlidingWindowAttention
from atlas_model.changes import Change, Rows
from atlas_model.config import AtlasConfig, AttentionConfig
from atlas_model.convolution import ShortConvolution, convolve
from atlas_model.gates import GateMaps, Gates
from atlas_model.memory import MemoryInputs, MemoryState
from atlas_model.neural_memory import NeuralMemory
from atlas_model.state import LayerState, memory_dtype
from atlas_model.state_delta import LayerDelta
from atlas_model.step_places import StepPlaces


class Mixer(nn.Module):
    """Memory, and in `mag` attention, over the normalised input [B, T, width] of layer `index`."""

    def __init__(self, config: AtlasConfig, index: int) -> None:
        super().__init__()
        self.memory_dtype = memory_dtype(config)
        self.num_heads = config.memory.num_heads
        self.widths = (config.key_inner_width, config.key_inner_width, config.value_inner_width)
        self.project = nn.Linear(config.width, sum(self.widths), bias=False)
        self.convolution = ShortConvolution(sum(self.widths), config.conv_width, num_summing=2 * self.widths[0])
        self.gate_maps = GateMaps(config)
        self.memory = NeuralMemory(config.layer_memory(index))
        self.attention: SlidingWindowAttention | None = None
        if config.layout == "mag" and config.attention is not None:
            self.attention = SlidingWindowAttention(config, config.attention)
        self.output_gate = nn.Linear(config.width, config.value_inner_width, bias=False)
        branches = 1 if self.attention is None else 2
        self.out = nn.Linear(branches * config.value_inner_width, config.width, bias=False)

    def forward(
        self, x: Tensor, state: LayerState, position: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, LayerState, Gates]:
        assert state.memory is not None
        assert state.convolution is not None
        projected = self.project(x)
        output_gate = torch.sigmoid(self.output_gate(x))
        # NOTE: the memory computes in its own dtype: bfloat16 keys would round away what a fact changes.
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.memory_dtype)
            convolved, convolution = self.convolution(projected, state.convolution, lengths)
            activated = silu(convolved)
            inputs = self._memory_inputs(x, activated, state.memory)
            read, memory = self.memory(inputs, state.memory, position, self.gate_maps.max_inner_lr, lengths=lengths)
            branches = [read * output_gate]
            attention = state.attention
            if self.attention is not None and state.attention is not None:
                queries_keys, values = convolved[..., : -self.widths[2]], activated[..., -self.widths[2] :]
                attended, attention = self.attention(queries_keys, values, state.attention, position, lengths)
                branches.insert(0, attended)
        state = replace(state, memory=memory, convolution=convolution, attention=attention)
        return self.out(torch.cat(branches, dim=-1)), state, inputs.gates

    def step(self, x: Tensor, state: LayerState, places: StepPlaces) -> tuple[Tensor, LayerDelta]:
        """One token a row, [B, width] -> the same, and what it changes of the state."""
        assert state.memory is not None
        assert state.convolution is not None
        convolved, shifted = self.convolution.step(self.project(x), state.convolution)
        activated = silu(convolved)
        inputs, gates = self._step_inputs(x, activated, state.memory)
        read, changes = self.memory.step(inputs, gates, state.memory, places, self.gate_maps.max_inner_lr)
        changes |= shifted
        branches = [read[:, 0] * torch.sigmoid(self.output_gate(x))]
        if self.attention is not None and state.attention is not None:
            assert places.attention is not None
            border = 2 * self.widths[0]
            attended, seen = self.attention.step(
                convolved[:, :border], activated[:, border:], state.attention, places.attention
            )
            branches.insert(0, attended)
            changes |= seen
        return self.out(torch.cat(branches, dim=-1)), LayerDelta(changes, inputs)

    def _step_inputs(self, x: Tensor, activated: Tensor, state: MemoryState) -> tuple[MemoryInputs, Tensor]:
        """As `_memory_inputs`, of one token a row: [B, width] and [B, channels] after SiLU. And the gates stacked."""
        border, heads, dtype = 2 * self.widths[0], self.num_heads, state.keys.dtype
        queries_keys = normalize(activated[:, :border].unflatten(-1, (2 * heads, 1, -1)), dim=-1)
        queries, keys = queries_keys.split(heads, dim=1)
        keys = keys.to(dtype).to(x.dtype)
        gates = self.gate_maps.step(x, queries, keys)[:, :, None].to(dtype).to(x.dtype)
        values = activated[:, border:].unflatten(-1, (heads, 1, -1)).to(dtype).to(x.dtype)
        return MemoryInputs(queries, keys, values, Gates.unstack(gates)), gates

    def commit(self, inputs: MemoryInputs, state: MemoryState, rows: Tensor) -> dict[str, Rows]:
        """What the token that ends its chunk makes of each of these rows, int64 [R]."""
        return self.memory.commit(inputs, state, rows, self.gate_maps.max_inner_lr)

    def look_up(self, x: Tensor, state: LayerState, lengths: Tensor | None) -> tuple[Tensor, LayerState]:
        """What the open chunk's first memory holds for the tokens x, [B, T, value_inner_width]; learns nothing of them.

        Queries are made as in `forward`; the tail of their convolution is the state's `context_convolution`.
        """
        assert state.memory is not None
        assert state.context_convolution is not None
        width = self.widths[0]
        projected = linear(x, self.project.weight[:width])
        with torch.autocast(x.device.type, enabled=False):
            queries, convolution = convolve(
                projected, state.context_convolution, self.convolution.weight[:, :width], lengths
            )
            read = self.memory.read_anchor(self._unit_heads(silu(queries)), state.memory)
        return read, replace(state, context_convolution=convolution)

    def _unit_heads(self, x: Tensor) -> Tensor:
        """Heads apart, each of length 1: [B, T, n key_width] -> [B, n, T, key_width]."""
        width = self.widths[0] // self.num_heads
        return normalize(x.unflatten(-1, (-1, width)), dim=-1).transpose(1, 2)

    def _memory_inputs(self, x: Tensor, activated: Tensor, state: MemoryState) -> MemoryInputs:
        """From the block's input, and the SiLU of convolved queries, keys and values, [B, T, sum of widths].

        Heads apart, l2 norm; rounded at birth to the dtype in which the state keeps the open chunk.
        """

        def rounded(x: Tensor) -> Tensor:
            return x.to(state.keys.dtype).to(x.dtype)

        queries_keys, values = activated.split((2 * self.widths[0], self.widths[2]), dim=-1)
        queries, keys = self._unit_heads(queries_keys).chunk(2, dim=1)
        keys = rounded(keys)
        gates = self.gate_maps(x, queries, keys)
        return MemoryInputs(
            queries=queries,
            keys=keys,
            values=rounded(values.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)),
            gates=Gates.unstack(rounded(gates.stack())),
        )


class AttentionMixer(nn.Module):
    """Sliding-window attention with projections of its own, over [B, T, width]: the second half of a `mal` layer, and
    all that a `swa` layer has."""

    def __init__(self, config: AtlasConfig, attention: AttentionConfig) -> None:
        super().__init__()
        self.widths = (config.key_inner_width, config.key_inner_width, config.value_inner_width)
        self.project = nn.Linear(config.width, sum(self.widths), bias=False)
        self.attention = SlidingWindowAttention(config, attention)
        self.out = nn.Linear(config.value_inner_width, config.width, bias=False)

    def forward(
        self, x: Tensor, state: AttentionState, position: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, AttentionState]:
        queries_keys, values = self.project(x).split((2 * self.widths[0], self.widths[2]), dim=-1)
        attended, state = self.attention(queries_keys, values, state, position, lengths)
        return self.out(attended), state

    def step(self, x: Tensor, state: AttentionState, places: StepPlaces) -> tuple[Tensor, dict[str, Change]]:
        """One token a row, [B, width] -> the same, and what it changes of the state."""
        assert places.attention is not None
        queries_keys, values = self.project(x).split((2 * self.widths[0], self.widths[2]), dim=-1)
        attended, changes = self.attention.step(queries_keys, values, state, places.attention)
        return self.out(attended), changes

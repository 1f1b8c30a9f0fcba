"""One layer: pre-norm, mixer, residual; in `mal` pre-norm, attention, residual; pre-norm, SwiGLU, residual.

Mixer: linear queries, keys and values; a short causal convolution on each, which binds a key to the token after it;
the memory on l2-normalised SiLU of them; in `mag` sliding-window attention on the same convolved vectors beside it.
The output is W_o concat(attention, memory * sigmoid(gate)), so the memory can bring content by itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, rms_norm, silu

from atlas_model.attention import AttentionState, SlidingWindowAttention
from atlas_model.config import AtlasConfig, AttentionConfig, MemoryConfig
from atlas_model.feature_map import FeatureMap
from atlas_model.gates import GateMaps, Gates
from atlas_model.memory import (
    MemoryInputs,
    MemoryRule,
    MemoryState,
    chunk,
    memory_network,
    memory_state_spec,
    recurrent,
)
from atlas_model.ragged import tail
from atlas_model.state import LayerState, memory_dtype

_NUM_SUMMED = 8


class MemoryForm(Protocol):
    """The chunk or the recurrent form of the memory, as a block calls it."""

    def __call__(
        self, rule: MemoryRule, inputs: MemoryInputs, state: MemoryState, position: Tensor
    ) -> tuple[Tensor, MemoryState]: ...


class ShortConvolution(nn.Module):
    """Causal depthwise convolution, [B, T, channels] -> the same; its tail is part of the state.

    The first `num_summing` channels start as the sum of the last 8 tokens (`width`, if it is less), the others as the
    token itself. Queries and keys that begin as sums match wherever their words stand, so that a question finds the
    fact it shares a word with before anything is learned (decided here).
    """

    def __init__(self, channels: int, width: int, num_summing: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, channels))
        with torch.no_grad():
            self.weight[-1] = 1.0
            num_summed = min(width, _NUM_SUMMED)
            self.weight[-num_summed:, :num_summing] = num_summed**-0.5

    def forward(self, x: Tensor, before: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """before: [B, width - 1, channels]. Returns the convolved tokens and the tail after them."""
        width = self.weight.shape[0]
        x = x.to(before.dtype).to(self.weight.dtype)
        extended = torch.cat([before.to(x.dtype), x], dim=1)
        num_new = x.shape[1]
        mixed = extended[:, :num_new] * self.weight[0]
        for offset in range(1, width):
            mixed = mixed + extended[:, offset : offset + num_new] * self.weight[offset]
        return mixed, tail(extended, lengths, width - 1).to(before.dtype)


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
        form: MemoryForm = chunk,
    ) -> tuple[Tensor, MemoryState]:
        """What each token reads, normalised, [B, T, value_inner_width], and the memory after the last of them.

        position: int64 [B], tokens fed before. max_inner_lr: [H], the largest inner_lr among the gates there can ever
        be, 1 unless told; the bounded step counts on it where there is momentum.
        """
        read, state = form(self.rule(max_inner_lr), inputs, state, position)
        normed = rms_norm(read, read.shape[-1:], eps=self.config.read_norm_eps) * self.read_scale[:, None]
        return normed.transpose(1, 2).flatten(2), state


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
        self, x: Tensor, state: LayerState, position: Tensor, lengths: Tensor | None, is_step: bool
    ) -> tuple[Tensor, LayerState, Gates]:
        projected = self.project(x)
        output_gate = torch.sigmoid(self.output_gate(x))
        # NOTE: the memory computes in its own dtype: bfloat16 keys would round away what a fact changes.
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.memory_dtype)
            convolved, convolution = self.convolution(projected, state.convolution, lengths)
            queries, keys, values = convolved.split(self.widths, dim=-1)
            inputs = self._memory_inputs(x, queries, keys, values, state.memory)

            def form(
                rule: MemoryRule, inputs: MemoryInputs, memory: MemoryState, position: Tensor
            ) -> tuple[Tensor, MemoryState]:
                if is_step:
                    return recurrent(rule, inputs, memory, position)
                return chunk(rule, inputs, memory, position, lengths)

            read, memory = self.memory(inputs, state.memory, position, self.gate_maps.max_inner_lr, form)
            branches = [read * output_gate]
            attention = state.attention
            if self.attention is not None and state.attention is not None:
                attended, attention = self.attention(queries, keys, silu(values), state.attention, position, lengths)
                branches.insert(0, attended)
        return self.out(torch.cat(branches, dim=-1)), LayerState(memory, convolution, attention), inputs.gates

    def _memory_inputs(
        self, x: Tensor, queries: Tensor, keys: Tensor, values: Tensor, state: MemoryState
    ) -> MemoryInputs:
        """Heads apart, SiLU, l2 norm; rounded at birth to the dtype in which the state keeps the open chunk."""

        def rounded(x: Tensor) -> Tensor:
            return x.to(state.keys.dtype).to(x.dtype)

        def heads(x: Tensor) -> Tensor:
            split: Tensor = silu(x).unflatten(-1, (self.num_heads, -1))
            return split.transpose(1, 2)

        queries, keys = normalize(heads(queries), dim=-1), rounded(normalize(heads(keys), dim=-1))
        gates = self.gate_maps(x, queries, keys)
        return MemoryInputs(
            queries=queries,
            keys=keys,
            values=rounded(heads(values)),
            gates=Gates.unstack(rounded(gates.stack())),
        )


class AttentionMixer(nn.Module):
    """Sliding-window attention with projections of its own, over [B, T, width]: the second half of a `mal` layer."""

    def __init__(self, config: AtlasConfig, attention: AttentionConfig) -> None:
        super().__init__()
        self.widths = (config.key_inner_width, config.key_inner_width, config.value_inner_width)
        self.project = nn.Linear(config.width, sum(self.widths), bias=False)
        self.attention = SlidingWindowAttention(config, attention)
        self.out = nn.Linear(config.value_inner_width, config.width, bias=False)

    def forward(
        self, x: Tensor, state: AttentionState, position: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, AttentionState]:
        queries, keys, values = self.project(x).split(self.widths, dim=-1)
        attended, state = self.attention(queries, keys, values, state, position, lengths)
        return self.out(attended), state


class Block(nn.Module):
    """[B, T, width] -> the same, with the layer's state in and out."""

    def __init__(self, config: AtlasConfig, index: int) -> None:
        super().__init__()
        self.mixer_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mixer = Mixer(config, index)
        self.attention_mixer: AttentionMixer | None = None
        if config.layout == "mal" and config.attention is not None:
            self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
            self.attention_mixer = AttentionMixer(config, config.attention)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.expand = nn.Linear(config.width, 2 * config.feed_forward_width, bias=False)
        self.contract = nn.Linear(config.feed_forward_width, config.width, bias=False)

    def forward(
        self, x: Tensor, state: LayerState, position: Tensor, lengths: Tensor | None, is_step: bool
    ) -> tuple[Tensor, LayerState, Gates]:
        mixed, state, gates = self.mixer(self.mixer_norm(x), state, position, lengths, is_step)
        x = x + mixed
        if self.attention_mixer is not None and state.attention is not None:
            attended, attention = self.attention_mixer(self.attention_norm(x), state.attention, position, lengths)
            x, state = x + attended, replace(state, attention=attention)
        gate, up = self.expand(self.feed_forward_norm(x)).chunk(2, dim=-1)
        return x + self.contract(silu(gate) * up), state, gates

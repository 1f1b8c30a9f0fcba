"""Two recurrent models for llama.cpp, as the tensors that its loader asks for: name, shape and how each is drawn.

Promises: everything here follows from our configuration; the drawn models are stable (states decay, rates are below 1),
so that logits stay finite however much is read.

    rwkv7   RWKV-7 (arXiv 2503.14456): a matrix state a head, trained by a delta rule while it reads: the nearest
            relative of our memory. Same width, depth and vocabulary; its feed-forward has two matrices instead of
            three, so it is half as wide again.
    mamba   Mamba (arXiv 2312.00752): two blocks for each of our layers, since its blocks have no feed-forward part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from atlas_model.config import AtlasConfig

HEAD_WIDTH = 64
SSM_STATE_WIDTH = 16
SSM_CONV_WIDTH = 4
NORM_EPS = 1e-5

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Draw:
    """A tensor of a file. shape: rows first, as torch has it; matrices alone may be stored with fewer bits."""

    shape: Shape
    draw: Callable[[Shape], Tensor]
    is_product: bool = False


@dataclass(frozen=True, slots=True)
class RecurrentShape:
    """values: the metadata that the loader of `architecture` asks for, by their names behind the architecture's."""

    architecture: str
    values: Mapping[str, int | float]
    tensors: Mapping[str, Draw]
    embedding_is_output: bool

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def num_parameters_per_token(self) -> int:
        table = 0 if self.embedding_is_output else math.prod(self.tensors["token_embd.weight"].shape)
        return self.num_parameters - table


def rwkv7_shape(config: AtlasConfig) -> RecurrentShape:
    """Low ranks by the rule of the model's authors, which llama.cpp's converter also has."""
    width, feed_forward_width = config.width, 3 * config.feed_forward_width // 2
    decay_rank = rate_rank = _low_rank(width, 0.5, 1.8)
    value_rank, gate_rank = _low_rank(width, 0.5, 1.3), _low_rank(width, 0.8, 0.6)
    tensors = {
        "token_embd.weight": _matrix(config.vocab_size, width),
        "token_embd_norm.weight": _ones(width),
        "token_embd_norm.bias": _zeros(width),
        "output_norm.weight": _ones(width),
        "output_norm.bias": _zeros(width),
        "output.weight": _matrix(config.vocab_size, width),
    }
    for layer in range(config.num_layers):
        # The first layer's value residual is not used, and the loader wants it with the rank of the rates.
        value_rank_here = value_rank if layer else rate_rank
        block = {
            "attn_norm.weight": _ones(width),
            "attn_norm.bias": _zeros(width),
            "attn_norm_2.weight": _ones(width),
            "attn_norm_2.bias": _zeros(width),
            "time_mix_lerp_fused.weight": _uniform(6, 1, 1, width),
            "time_mix_ln.weight": _ones(width),
            "time_mix_ln.bias": _zeros(width),
            "channel_mix_lerp_k.weight": _uniform(1, 1, width),
            "channel_mix_key.weight": _matrix(feed_forward_width, width),
            "channel_mix_value.weight": _matrix(width, feed_forward_width),
        }
        for name, rank in (("w", decay_rank), ("a", rate_rank), ("v", value_rank_here)):
            block[f"time_mix_{name}0.weight"] = _normal(width)
            block |= _low_rank_pair(name, width, rank)
        block |= _low_rank_pair("g", width, gate_rank)
        block |= {f"time_mix_{name}.weight": _normal(width) for name in ("k_k", "k_a", "r_k")}
        for name in ("key", "value", "receptance", "output"):
            block[f"time_mix_{name}.weight"] = _matrix(width, width)
        tensors |= {f"blk.{layer}.{name}": tensor for name, tensor in block.items()}
    values = {
        "vocab_size": config.vocab_size,
        "context_length": 2**20,
        "embedding_length": width,
        "block_count": config.num_layers,
        "feed_forward_length": feed_forward_width,
        "attention.head_count": 0,
        "attention.layer_norm_epsilon": NORM_EPS,
        "wkv.head_size": HEAD_WIDTH,
        "attention.decay_lora_rank": decay_rank,
        "attention.iclr_lora_rank": rate_rank,
        "attention.value_residual_mix_lora_rank": value_rank,
        "attention.gate_lora_rank": gate_rank,
    }
    return RecurrentShape("rwkv7", values, tensors, embedding_is_output=False)


def mamba_shape(config: AtlasConfig) -> RecurrentShape:
    width, inner_width, rank = config.width, 2 * config.width, -(-config.width // 16)
    num_blocks = 2 * config.num_layers
    tensors = {"token_embd.weight": _matrix(config.vocab_size, width), "output_norm.weight": _ones(width)}
    for layer in range(num_blocks):
        block = {
            "attn_norm.weight": _ones(width),
            "ssm_in.weight": _matrix(2 * inner_width, width),
            "ssm_conv1d.weight": Draw((inner_width, SSM_CONV_WIDTH), _draw_matrix),
            "ssm_conv1d.bias": _zeros(inner_width),
            "ssm_x.weight": _matrix(rank + 2 * SSM_STATE_WIDTH, inner_width),
            "ssm_dt.weight": _matrix(inner_width, rank),
            "ssm_dt.bias": _normal(inner_width),
            "ssm_a": Draw((inner_width, SSM_STATE_WIDTH), _draw_decays),
            "ssm_d": _ones(inner_width),
            "ssm_out.weight": _matrix(width, inner_width),
        }
        tensors |= {f"blk.{layer}.{name}": tensor for name, tensor in block.items()}
    values = {
        "vocab_size": config.vocab_size,
        "context_length": 2**20,
        "embedding_length": width,
        "block_count": num_blocks,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": NORM_EPS,
        "ssm.conv_kernel": SSM_CONV_WIDTH,
        "ssm.inner_size": inner_width,
        "ssm.state_size": SSM_STATE_WIDTH,
        "ssm.time_step_rank": rank,
    }
    return RecurrentShape("mamba", values, tensors, embedding_is_output=True)


def _low_rank(width: int, exponent: float, factor: float) -> int:
    return max(1, round(math.pow(width, exponent) * factor / 32)) * 32


def _low_rank_pair(name: str, width: int, rank: int) -> dict[str, Draw]:
    return {
        f"time_mix_{name}1.weight": _matrix(rank, width),
        f"time_mix_{name}2.weight": _matrix(width, rank),
    }


def _matrix(num_outputs: int, num_inputs: int) -> Draw:
    return Draw((num_outputs, num_inputs), _draw_matrix, is_product=True)


def _ones(*shape: int) -> Draw:
    return Draw(shape, torch.ones)


def _zeros(*shape: int) -> Draw:
    return Draw(shape, torch.zeros)


def _uniform(*shape: int) -> Draw:
    return Draw(shape, torch.rand)


def _normal(*shape: int) -> Draw:
    return Draw(shape, torch.randn)


def _draw_matrix(shape: Shape) -> Tensor:
    return torch.randn(shape) / math.sqrt(shape[-1])


def _draw_decays(shape: Shape) -> Tensor:
    """-1, -2, ... for the numbers of each state."""
    return -torch.arange(1.0, shape[1] + 1).expand(shape)

"""The public Atlas-MAG checkpoint layout (github.com/toddwbucy/Atlas-MAG_OmegaRule), read without running anything.

A file is torch.save of a dict whose `model_state_dict` holds, at width D, h heads of d = D / h and vocabulary V:

    tok_emb.weight, lm_head.weight        [V, D]  one tensor under two names; `w_init` [D] is added to each embedding
    norm_f.weight, blocks.i.norm1, norm2  [D]     RMSNorm, eps 1e-6; norm1 before the mixer, norm2 before the SwiGLU
    qkv.w_q, w_k, w_v                     [D, D]  linear, no bias, heads side by side
    qkv.q_norm, k_norm                    [d]     RMSNorm of each head's query and key, before rotary angles (base 1e4,
                                                  pairs i and i + d/2); scores / sqrt(d), window 512 (not in the file)
    w_o                                   [D, D]  attention's output
    ffn.w1, w2, w3                                w3(silu(w1 x) * w2 x), F = floor(8 D / 3)
    gamma_gate.gate.0, .2                         token gate, one a token: sigmoid(linear(silu(linear x)))
    memory.*                                      one a layer for all heads: proj_down D -> d; degree-2 monomials of it,
                                                  d + d(d+1)/2; poly_norm, a LayerNorm; poly_compress to a rank (512);
                                                  w1(act(w2 x) * w3 x), 4d hidden, act SiLU or, later, GELU; proj_up
                                                  d -> D; later output_scale * output_norm(.), a LayerNorm
    memory.momentum_*                             the momentum of each of memory's tensors when the file was written
    qk_memory.*                                   buffers: q' = (m_persistent + sum decay^i gamma k k^T) q / norm, 256
                                                  tokens back, is what the memory reads

The kinds of block (`Mixing`), x the block's input: `gated`, has qk_memory: x + w_o(attention) * sigmoid(memory);
`added`, has memory_gate [1]: x + w_o(attention) + sigmoid(memory_gate) * memory; `attention`: neither, no memory. Both
memories learn by momentum and Newton-Schulz of every tensor under memory.*, one step a forward, in place, averaged over
the batch (`gated`: only in training mode), and the published training loop keeps them out of its optimiser: what a file
holds of them is what its last batches left.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ATTENTION_WINDOW = 512
ROTARY_BASE = 10_000.0
NORM_EPS = 1e-6

_PREFIX = re.compile(r"^(?:module\.|_orig_mod\.)+")
_BLOCK = re.compile(r"^blocks\.(\d+)\.")


class LayoutError(ValueError):
    """A file that is not, or not wholly, of the layout; the message names what is wrong."""


class Mixing(StrEnum):
    """How a block joins attention and memory."""

    GATED = "gated"
    ADDED = "added"
    ATTENTION = "attention"


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the layout, every tensor there, of the right shape, finite and float32."""

    tensors: Mapping[str, Tensor]
    mixing: Mixing
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    feed_forward_width: int
    feature_degree: int

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    def block(self, index: int) -> dict[str, Tensor]:
        """The tensors of one block, their names without `blocks.i.`."""
        prefix = f"blocks.{index}."
        return {name.removeprefix(prefix): each for name, each in self.tensors.items() if name.startswith(prefix)}


def read_source(path: Path) -> Source:
    """Read a checkpoint file. Raises LayoutError; nothing in the file is ever run."""
    tensors = _read_tensors(path)
    vocab_size, width = _shape(tensors, "tok_emb.weight", 2)
    num_layers = 1 + max((int(match[1]) for name in tensors if (match := _BLOCK.match(name))), default=-1)
    if num_layers == 0:
        raise LayoutError("the checkpoint has no blocks")
    (head_width,) = _shape(tensors, "blocks.0.qkv.q_norm.weight", 1)
    feed_forward_width, _ = _shape(tensors, "blocks.0.ffn.w1.weight", 2)
    if width % head_width or head_width % 2:
        raise LayoutError(f"heads of width {head_width} do not make up the width {width}, or are odd")
    mixing = Mixing.ATTENTION
    if any(name.startswith("blocks.0.memory.") for name in tensors):
        mixing = Mixing.ADDED if "blocks.0.memory_gate" in tensors else Mixing.GATED
    block = _attention_shapes(width, head_width, feed_forward_width)
    degree = 1
    if mixing is not Mixing.ATTENTION:
        memory, degree = _memory_shapes(tensors, width)
        block |= memory | _gate_shapes(tensors, mixing, width)
    expected: dict[str, tuple[int, ...]] = {
        "tok_emb.weight": (vocab_size, width),
        "lm_head.weight": (vocab_size, width),
        "w_init": (width,),
        "norm_f.weight": (width,),
    }
    expected |= {f"blocks.{index}.{name}": shape for index in range(num_layers) for name, shape in block.items()}
    _compare(tensors, expected)
    return Source(
        tensors, mixing, vocab_size, width, num_layers, width // head_width, feed_forward_width, feature_degree=degree
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise LayoutError(f"{path} is not a file")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise LayoutError(
            f"{path} is not a file of tensors and plain values alone, and anything more could run code. Whoever trusts "
            "it can write one that is: torch.save({'model_state_dict': model.state_dict()}, path)"
        ) from error
    except Exception as error:
        # Boundary: torch raises whatever a broken file makes it stumble over.
        raise LayoutError(f"{path} is not a file of torch.save: {error}") from error
    state = content.get("model_state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state:
        raise LayoutError(f"{path} has no 'model_state_dict'")
    tensors: dict[str, Tensor] = {}
    for full_name, tensor in state.items():
        name = _PREFIX.sub("", str(full_name))
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise LayoutError(f"{full_name} is not a tensor of floating-point numbers")
        if name in tensors:
            raise LayoutError(f"{name} is there twice, with and without a prefix")
        if not bool(tensor.isfinite().all()):
            raise LayoutError(f"{name} is not finite")
        tensors[name] = tensor.to(torch.float32)
    return tensors


def _attention_shapes(width: int, head_width: int, feed_forward_width: int) -> dict[str, tuple[int, ...]]:
    return {
        "norm1.weight": (width,),
        "norm2.weight": (width,),
        **{f"qkv.{name}.weight": (width, width) for name in ("w_q", "w_k", "w_v")},
        **{f"qkv.{name}.weight": (head_width,) for name in ("q_norm", "k_norm")},
        "w_o.weight": (width, width),
        "ffn.w1.weight": (feed_forward_width, width),
        "ffn.w2.weight": (feed_forward_width, width),
        "ffn.w3.weight": (width, feed_forward_width),
    }


def _memory_shapes(tensors: Mapping[str, Tensor], width: int) -> tuple[dict[str, tuple[int, ...]], int]:
    """A block's memory and its momentum, and the degree of its features."""
    key_width, _ = _shape(tensors, "blocks.0.memory.proj_down.weight", 2)
    (num_features,) = _shape(tensors, "blocks.0.memory.poly_norm.weight", 1)
    degrees = {key_width: 1, key_width + key_width * (key_width + 1) // 2: 2}
    if num_features not in degrees:
        raise LayoutError(f"{num_features} features of {key_width} dimensions are neither of degree 1 nor of 2")
    hidden, rank = _shape(tensors, "blocks.0.memory.w2.weight", 2)
    shapes: dict[str, tuple[int, ...]] = {
        "proj_down.weight": (key_width, width),
        "poly_norm.weight": (num_features,),
        "poly_norm.bias": (num_features,),
        "w1.weight": (key_width, hidden),
        "w2.weight": (hidden, rank),
        "w3.weight": (hidden, rank),
        "proj_up.weight": (width, key_width),
    }
    if rank != num_features:
        shapes["poly_compress.weight"] = (rank, num_features)
    if "blocks.0.memory.output_scale" in tensors:
        shapes |= {"output_scale": (), "output_norm.weight": (width,), "output_norm.bias": (width,)}
    momentum = {f"momentum_{name.replace('.', '_')}": shape for name, shape in shapes.items()}
    return {f"memory.{name}": shape for name, shape in (shapes | momentum).items()}, degrees[num_features]


def _gate_shapes(tensors: Mapping[str, Tensor], mixing: Mixing, width: int) -> dict[str, tuple[int, ...]]:
    hidden, _ = _shape(tensors, "blocks.0.gamma_gate.gate.0.weight", 2)
    gates: dict[str, tuple[int, ...]] = {
        "gamma_gate.gate.0.weight": (hidden, width),
        "gamma_gate.gate.2.weight": (1, hidden),
    }
    if mixing is Mixing.ADDED:
        return gates | {"memory_gate": (1,)}
    return gates | {
        "qk_memory.decay_weights": _shape(tensors, "blocks.0.qk_memory.decay_weights", 1),
        "qk_memory.m_persistent": (width, width),
        "qk_memory.norm_persistent": (),
    }


def _shape(tensors: Mapping[str, Tensor], name: str, num_dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor that others' shapes follow from."""
    if name not in tensors:
        raise LayoutError(f"the checkpoint lacks {name}: it is not of the Atlas-MAG layout")
    if tensors[name].ndim != num_dimensions:
        raise LayoutError(f"{name} must have {num_dimensions} dimensions, it is {list(tensors[name].shape)}")
    return tuple(tensors[name].shape)


def _compare(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    for what, names in (("lacks", expected.keys() - tensors.keys()), ("has unknown", tensors.keys() - expected.keys())):
        if names:
            raise LayoutError(f"the checkpoint {what} {', '.join(sorted(names))}")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise LayoutError(f"{name} is {list(tensors[name].shape)}, it must be {list(shape)}")

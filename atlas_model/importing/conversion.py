"""What of an Atlas-MAG checkpoint has a counterpart here, what has none, and the model that begins from it.

Layout `mal` is the nearest: attention with projections of its own, on values as they are. With the memory silent, which
it is at first (its output projection is 0), a block computes x + attention, then the SwiGLU, as the source's blocks do
when their memory is switched off; that much is carried over. The memory is not: it is one of width d for all heads
there, one a head here; it reads other vectors, normalised otherwise; and its numbers are what the last batches left.
So its configuration here is the nearest (gated_mlp, muon, the same degree) and its weights begin anew.

Decided: where the source multiplies attention by sigmoid(memory), it is scaled by that gate's value where the memory
answers 0. A scale per dimension after the norm of queries and keys keeps its directions and its mean length alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from atlas_model.config import AtlasConfig, AttentionConfig, MemoryConfig
from atlas_model.importing.layout import ATTENTION_WINDOW, NORM_EPS, ROTARY_BASE, Mixing, Source
from atlas_model.model import AtlasModel

MEMORY_CHUNK_SIZE = 64
OMEGA_WINDOW = 20
"""The source looks back over 256 tokens with weights 0.95^i, whose sum is 20; the weights here are equal."""
MAX_FEATURE_WIDTH = 16
"""Decided: keeps a session of the public sizes at tens of megabytes."""

_UNIFORM_TOLERANCE = 1e-6


class Fate(StrEnum):
    """What becomes of a tensor."""

    MAPPED = "mapped"
    NO_COUNTERPART = "no counterpart here"
    NO_SOURCE = "ours without a source"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. Names have `*` for the number of a block, or for all that begins so; `note` says how or
    why."""

    fate: Fate
    source: str
    target: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Conversion:
    """differences: what the model computes otherwise than the source, a sentence each; empty when none was found."""

    model: AtlasModel
    rows: tuple[Row, ...]
    differences: tuple[str, ...]


def nearest_config(source: Source, vocab_size: int) -> AtlasConfig:
    """The configuration whose parts are nearest to the source's."""
    return AtlasConfig(
        vocab_size=vocab_size,
        width=source.width,
        num_layers=source.num_layers,
        feed_forward_width=source.feed_forward_width,
        layout="mal",
        memory=MemoryConfig(
            num_heads=source.num_heads,
            key_width=source.head_width,
            value_width=source.head_width,
            network="gated_mlp",
            rule="muon",
            read_granularity="chunk",
            step="free",
            memory_chunk_size=MEMORY_CHUNK_SIZE,
            omega_window=OMEGA_WINDOW,
            feature_degree=source.feature_degree,
            feature_width=min(MAX_FEATURE_WIDTH, source.head_width),
        ),
        attention=AttentionConfig(source.num_heads, ATTENTION_WINDOW, ROTARY_BASE),
        norm_eps=NORM_EPS,
    )


def convert(source: Source, vocab_size: int | None = None) -> Conversion:
    """The model that begins from the source. vocab_size: of the tokenizer it is to have; rows beyond the source's are
    new. What has no source is drawn from torch's generator."""
    config = nearest_config(source, max(source.vocab_size, vocab_size or 0))
    model = AtlasModel(config)
    embedding = source.tensors["tok_emb.weight"] + source.tensors["w_init"]
    num_new = config.vocab_size - source.vocab_size
    weights = {
        "embedding.weight": torch.cat([embedding, embedding.mean(0).expand(num_new, -1)]),
        "norm.weight": source.tensors["norm_f.weight"],
    }
    for index in range(source.num_layers):
        block = _block_weights(source.block(index), source)
        weights |= {f"blocks.{index}.{name}": each for name, each in block.items()}
    model.load_state_dict(model.state_dict() | weights)
    return Conversion(model, _rows(source, num_new), _differences(source))


def _block_weights(tensors: Mapping[str, Tensor], source: Source) -> dict[str, Tensor]:
    """What a block of ours takes from one of the source's; rows of a weight are its outputs."""
    norms = [tensors[f"qkv.{name}.weight"] for name in ("q_norm", "k_norm")]
    queries, keys = (
        tensors[f"qkv.{name}.weight"] * norm.repeat(source.num_heads)[:, None]
        for name, norm in zip(("w_q", "w_k"), norms, strict=True)
    )
    lengths = [float(norm.square().mean().sqrt()) for norm in norms]
    scale = math.sqrt(source.head_width) * math.prod(lengths)
    return {
        "attention_norm.weight": tensors["norm1.weight"],
        "attention_mixer.project.weight": torch.cat([queries, keys, tensors["qkv.w_v.weight"]]),
        "attention_mixer.attention.log_scale": torch.full((source.num_heads,), scale).log(),
        "attention_mixer.out.weight": tensors["w_o.weight"] * _gate_at_rest(tensors, source)[:, None],
        "feed_forward_norm.weight": tensors["norm2.weight"],
        "expand.weight": torch.cat([tensors["ffn.w1.weight"], tensors["ffn.w2.weight"]]),
        "contract.weight": tensors["ffn.w3.weight"],
        "mixer.out.weight": torch.zeros(source.width, source.width),
    }


def _gate_at_rest(tensors: Mapping[str, Tensor], source: Source) -> Tensor:
    """What attention is multiplied by there while the memory answers 0, [width]."""
    if source.mixing is not Mixing.GATED:
        return torch.ones(source.width)
    if "memory.output_scale" not in tensors:
        return torch.full((source.width,), 0.5)
    return torch.sigmoid(tensors["memory.output_scale"] * tensors["memory.output_norm.bias"])


def _is_uniform(source: Source) -> bool:
    """Whether the norms of queries and keys scale all dimensions alike, in every block."""
    lengths = [each.abs() for name, each in source.tensors.items() if name.endswith(("q_norm.weight", "k_norm.weight"))]
    return all(bool((each - each.mean()).abs().max() <= _UNIFORM_TOLERANCE * each.mean()) for each in lengths)


def _is_tied(source: Source) -> bool:
    return torch.equal(source.tensors["lm_head.weight"], source.tensors["tok_emb.weight"])


def _differences(source: Source) -> tuple[str, ...]:
    found = []
    if source.mixing is Mixing.GATED:
        found.append(
            "The source computes x + attention * sigmoid(memory). Nothing here multiplies attention by what a memory "
            "answers: attention is scaled by that gate's value where the memory answers 0, and the memory is new."
        )
    if source.mixing is Mixing.ADDED:
        found.append(
            "The source computes x + attention + sigmoid(memory_gate) * memory. Its memory reads and learns in another "
            "form than any here: the memory's part is left out, and the memory is new."
        )
    if not _is_uniform(source):
        found.append(
            "The source scales each dimension of a normalised query and key. Here each head has one scale: their "
            "directions are kept, their lengths only in the mean."
        )
    if not _is_tied(source):
        found.append("The source has an output layer of its own. Here it is the embedding.")
    return tuple(found)


def _rows(source: Source, num_new: int) -> tuple[Row, ...]:
    mapped, missing, new = Fate.MAPPED, Fate.NO_COUNTERPART, Fate.NO_SOURCE
    project, scale = "blocks.*.attention_mixer.project.weight", "blocks.*.attention_mixer.attention.log_scale"
    is_uniform, is_gated = _is_uniform(source), source.mixing is Mixing.GATED
    rows = [
        Row(mapped, "tok_emb.weight", "embedding.weight"),
        Row(mapped, "w_init", "embedding.weight", "added to each row; it moves all scores of a token alike"),
        Row(mapped, "lm_head.weight", "embedding.weight", "one tensor, as there")
        if _is_tied(source)
        else Row(missing, "lm_head.weight", "", "the output layer is the embedding"),
        Row(mapped, "norm_f.weight", "norm.weight"),
        Row(mapped, "blocks.*.norm1.weight", "blocks.*.attention_norm.weight"),
        *(Row(mapped, f"blocks.*.qkv.{name}.weight", project) for name in ("w_q", "w_k", "w_v")),
        *(
            Row(mapped, f"blocks.*.qkv.{name}.weight", f"{project}, {scale}")
            if is_uniform
            else Row(missing, f"blocks.*.qkv.{name}.weight", f"{project}, {scale}", "directions and mean length kept")
            for name in ("q_norm", "k_norm")
        ),
        Row(
            mapped,
            "blocks.*.w_o.weight",
            "blocks.*.attention_mixer.out.weight",
            "times sigmoid(memory) where the memory answers 0" if is_gated else "",
        ),
        Row(mapped, "blocks.*.norm2.weight", "blocks.*.feed_forward_norm.weight"),
        *(Row(mapped, f"blocks.*.ffn.{name}.weight", "blocks.*.expand.weight") for name in ("w1", "w2")),
        Row(mapped, "blocks.*.ffn.w3.weight", "blocks.*.contract.weight"),
    ]
    if source.mixing is not Mixing.ATTENTION:
        rows += [
            Row(missing, "blocks.*.memory.momentum_*", "", "state of the run that wrote the file"),
            Row(missing, "blocks.*.memory.*", "", "one memory for all heads, of other keys; left by the last batches"),
            Row(missing, "blocks.*.gamma_gate.*", "", "gates here are one a head and reach 0 and 1; no hidden layer"),
        ]
        rows.append(
            Row(
                missing,
                "blocks.*.qk_memory.*",
                "",
                "its sum of past keys begins with a trained one, and is of all heads",
            )
            if is_gated
            else Row(missing, "blocks.*.memory_gate", "", "the memory that it scales is not carried over")
        )
    rows += [
        Row(new, "", "blocks.*.mixer.out.weight", "0: the memory begins silent"),
        Row(new, "", "blocks.*.mixer_norm.weight", "initial value"),
        Row(new, "", "blocks.*.mixer.*", "initial value"),
    ]
    if num_new:
        rows.append(Row(new, "", f"embedding.weight[{source.vocab_size}:]", "the mean of the source's rows"))
    return tuple(rows)

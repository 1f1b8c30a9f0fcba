"""Models that the native kernels cover: a fixed grid with each value of every axis, and any drawn one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from atlas_model.config import AtlasConfig, AttentionConfig, MemoryConfig
from atlas_model.native.compiler import find_compiler
from atlas_model.native.errors import NativeUnavailableError
from tests.tiny import TINY_MEMORY, tiny_config

DELTA_MEMORY = replace(TINY_MEMORY, read_granularity="chunk", omega_window=1, max_momentum_decay=0.0)


def delta_config(dtype: torch.dtype = torch.float64, num_attention_heads: int = 2, **memory: Any) -> AtlasConfig:
    """The tiny model with the plain delta rule, with fields of its MemoryConfig changed."""
    attention = AttentionConfig(num_attention_heads, window=7)
    return tiny_config(dtype, memory=replace(DELTA_MEMORY, **memory), attention=attention)


COVERED = {
    "decay": delta_config(),
    "demo's": delta_config(retention="none", feature_norm="unit", read_norm_eps=1e-3),
    "free-decay-to-initial": delta_config(retention_target="initial", step="free"),
    "dot": delta_config(objective="dot", step="free"),
    "lp": delta_config(objective="lp", step="free", objective_power=2.5),
    "huber": delta_config(objective="huber", huber_delta=0.2),
    "degree-1": delta_config(feature_degree=1),
    "degree-3-unprojected": delta_config(feature_degree=3, feature_width=8, feature_norm="unit"),
    "elementwise": delta_config(feature_degree=3, feature_kind="elementwise"),
    "wide-values": delta_config(num_heads=1, key_width=16, value_width=70),
    "odd-widths": delta_config(num_heads=3, key_width=6, value_width=5, num_attention_heads=3),
    "chunk-per-layer": replace(delta_config(), memory_chunk_sizes=(1, 6)),
    "window-1": replace(delta_config(memory_chunk_size=1), attention=AttentionConfig(num_heads=2, window=1)),
    "long-window": replace(delta_config(), attention=AttentionConfig(num_heads=1, window=40)),
    "no-convolution": replace(delta_config(), conv_width=1),
}


def has_compiler() -> bool:
    try:
        find_compiler()
    except NativeUnavailableError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler here")


@st.composite
def drawn_covered_models(draw: st.DrawFn) -> AtlasConfig:
    """Any small model that the kernels cover."""
    heads, key_width, value_width = (
        draw(st.integers(1, 3)),
        draw(st.sampled_from([2, 4, 6, 18])),
        draw(st.integers(1, 9)),
    )
    objective = draw(st.sampled_from(["l2", "dot", "lp", "huber"]))
    retention = draw(st.sampled_from(["decay", "none"]))
    memory = MemoryConfig(
        num_heads=heads,
        key_width=key_width,
        value_width=value_width,
        objective=objective,
        objective_power=draw(st.sampled_from([1.5, 2.0, 3.0])),
        read_granularity="chunk",
        step="free" if objective in ("dot", "lp") else draw(st.sampled_from(["free", "bounded"])),
        memory_chunk_size=draw(st.integers(1, 7)),
        feature_degree=draw(st.integers(1, 3)),
        feature_width=draw(st.integers(1, key_width)),
        feature_kind=draw(st.sampled_from(["polynomial", "elementwise"])),
        feature_norm=draw(st.sampled_from(["none", "unit"])),
        retention=retention,  # type: ignore[arg-type]
        retention_target=draw(st.sampled_from(["zero", "initial"])) if retention == "decay" else "zero",
        max_momentum_decay=0.0,
    )
    return tiny_config(
        memory=memory,
        width=draw(st.integers(1, 40)),
        feed_forward_width=draw(st.integers(1, 40)),
        conv_width=draw(st.integers(1, 5)),
        attention=AttentionConfig(draw(st.sampled_from([1, heads])), draw(st.integers(7, 12))),
    )

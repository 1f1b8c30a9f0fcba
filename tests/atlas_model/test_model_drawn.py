"""Rows 3-5 of the correctness table on whole models drawn from all that a configuration allows.

drawn   the layout, chunk sizes of both layers, window or segment, persistent tokens, convolution, query projection,
        and a memory from the whole product that `test_memory_forms` draws from (free steps are small)
held    one forward = any two forwards = a prefill and steps, for two rows that stand apart, to 1e-9 in float64
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_model.config import AtlasConfig, AttentionConfig
from atlas_model.state import State
from tests.atlas_model.memory_cases import drawn_configurations, largest_error
from tests.atlas_model.test_model import TOLERANCE, assert_same_state, feed_steps, tokens
from tests.tiny import tiny_config, tiny_model

_SMALL_LOG_LR = math.log(1e-3)


@st.composite
def drawn_models(draw: st.DrawFn) -> AtlasConfig:
    """Any small model that is not refused."""
    memory = draw(drawn_configurations())
    memory = replace(
        memory,
        key_width=4,
        feature_width=min(4, memory.feature_width),
        query_projection=draw(st.sampled_from(["none", "keys"])),
    )
    layouts = ["mag", "mal", "mac", "swa"] + (["lmm"] if memory.read_granularity == "token" else [])
    layout = draw(st.sampled_from(layouts))
    chunk_sizes = (memory.memory_chunk_size, draw(st.integers(1, 6)))
    window = math.lcm(*chunk_sizes) if layout == "mac" else draw(st.integers(max(chunk_sizes), 9))
    num_persistent = draw(st.integers(0, 2)) if layout == "mac" else 0
    return tiny_config(
        layout=layout,
        memory=memory,
        memory_chunk_sizes=chunk_sizes,
        conv_width=draw(st.integers(1, 5)),
        attention=None if layout == "lmm" else AttentionConfig(1, window, num_persistent=num_persistent),
    )


@settings(max_examples=40, deadline=None)
@given(config=drawn_models(), cut=st.integers(1, 10), apart=st.integers(1, 7), seed=st.integers(0, 100))
def test_any_model_reads_the_same_in_one_forward_in_two_and_in_steps(
    config: AtlasConfig, cut: int, apart: int, seed: int
) -> None:
    model = tiny_model(config, seed)
    if config.memory.step == "free":
        with torch.no_grad():
            for mixer in model.mixers:
                mixer.gate_maps.log_max_inner_lr.fill_(_SMALL_LOG_LR)
    started = model(tokens(config, 1, apart, seed + 1)).state
    start = State.concatenate([model.initial_state(1), started])
    ids = tokens(config, 2, 11, seed + 2)
    whole = model(ids, start)
    first = model(ids[:, :cut], start)
    second = model(ids[:, cut:], first.state)
    assert largest_error(torch.cat([first.logits, second.logits], dim=1), whole.logits) <= TOLERANCE
    assert_same_state(second.state, whole.state)
    stepped, state = feed_steps(model, ids[:, cut:], first.state)
    assert largest_error(stepped, whole.logits[:, cut:]) <= TOLERANCE
    assert_same_state(state, whole.state)

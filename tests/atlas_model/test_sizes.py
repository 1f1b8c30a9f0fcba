"""What a configuration says it costs is what is counted."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from atlas_model.config import AtlasConfig, AttentionConfig, MemoryConfig
from atlas_model.model import AtlasModel
from atlas_model.presets import PRESETS, SESSION_MEGABYTES
from atlas_model.sizes import decode_flops_per_token, dense_flops_per_token, num_parameters, prefill_flops_per_token
from atlas_model.state import session_num_bytes, state_spec
from tests.atlas_model.memory_cases import configurations
from tests.tiny import TINY_MEMORY, save_tiny_checkpoint, tiny_config

COUNTED = {name: each for name, each in configurations().items() if "c4" in name or "c1" in name or "-c" not in name}


def _counted_flops_per_token(config: AtlasConfig, num_tokens: int) -> float:
    model = AtlasModel(config).requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, num_tokens, dtype=torch.int64))
    return float(counter.get_total_flops() / num_tokens)


@pytest.mark.parametrize("memory", COUNTED.values(), ids=COUNTED.keys())
def test_operations_of_a_memory_are_those_that_are_counted(memory: MemoryConfig) -> None:
    """Without attention, whose products the counter does not see; a window's few tokens are read twice."""
    if memory.read_granularity == "chunk":
        config = tiny_config(memory=memory, num_layers=1, attention=AttentionConfig(num_heads=2, window=8))
        attention = 2 * 8 * (config.key_inner_width + config.value_inner_width)
    else:
        config = tiny_config(memory=memory, num_layers=1, layout="lmm", attention=None)
        attention = 0
    assert prefill_flops_per_token(config) - attention == pytest.approx(_counted_flops_per_token(config, 36), rel=0.02)


@pytest.mark.parametrize("memory", COUNTED.values(), ids=COUNTED.keys())
def test_operations_of_a_decode_step_are_at_most_those_that_are_counted(memory: MemoryConfig) -> None:
    """Over one chunk, whose end is counted too. Where tokens read their own memory a commit may work the chunk out once
    more; where they do not, a step may work it out in vain."""
    layout, window = ("mag", 8) if memory.read_granularity == "chunk" else ("lmm", 0)
    attention = AttentionConfig(num_heads=2, window=window) if window else None
    config = tiny_config(memory=memory, num_layers=1, layout=layout, attention=attention)
    uncounted = 2 * window * (config.key_inner_width + config.value_inner_width)
    model = AtlasModel(config).requires_grad_(False)
    state = model.initial_state(1)
    with FlopCounterMode(display=False) as counter:
        for _ in range(memory.memory_chunk_size):
            _, state = model.step(torch.zeros(1, dtype=torch.int64), state)
    counted = counter.get_total_flops() / memory.memory_chunk_size
    assert dense_flops_per_token(config) < decode_flops_per_token(config) - uncounted <= 1.02 * counted
    if memory.read_granularity == "token":
        assert counted <= 1.25 * decode_flops_per_token(config)


def test_a_layer_of_attention_costs_its_projections_and_its_window() -> None:
    beside = prefill_flops_per_token(tiny_config(layout="mag"))
    after = prefill_flops_per_token(tiny_config(layout="mal"))
    config = tiny_config()
    assert after - beside == 2 * 2 * config.width * (2 * config.key_inner_width + config.value_inner_width)
    wider = tiny_config(attention=AttentionConfig(num_heads=2, window=8))
    assert prefill_flops_per_token(wider) - beside == 2 * 2 * (config.key_inner_width + config.value_inner_width)


@pytest.mark.parametrize("num_persistent", [0, 3])
def test_operations_of_memory_as_context_are_those_that_are_counted(num_persistent: int) -> None:
    attention = AttentionConfig(num_heads=2, window=12, num_persistent=num_persistent)
    memory = replace(TINY_MEMORY, memory_chunk_size=6, omega_window=1)
    config = tiny_config(layout="mac", attention=attention, memory=memory, num_layers=1)
    assert prefill_flops_per_token(config) == pytest.approx(_counted_flops_per_token(config, 36), rel=0.02)


@pytest.mark.parametrize("layout", ["mag", "mal", "mac", "swa"])
def test_parameters_are_the_numbers_in_the_checkpoint(
    tmp_path: Path, layout: Literal["mag", "mal", "mac", "swa"]
) -> None:
    config = tiny_config(layout=layout, attention=AttentionConfig(num_heads=2, window=10))
    save_tiny_checkpoint(tmp_path, config)
    saved = load_file(tmp_path / "model.safetensors")
    assert num_parameters(config) == sum(each.numel() for each in saved.values())


@pytest.mark.parametrize("name", PRESETS)
def test_a_session_of_a_preset_is_within_its_limit_and_wider_features_would_not_be(name: str) -> None:
    config, limit = PRESETS[name], SESSION_MEGABYTES[name] * 10**6
    assert session_num_bytes(config) <= limit
    if name.startswith("atlas-") and config.memory.feature_degree > 1:
        memory = replace(config.memory, feature_width=config.memory.feature_width + 1)
        assert session_num_bytes(replace(config, memory=memory)) > limit


@pytest.mark.parametrize("name", PRESETS)
def test_the_readme_says_what_a_preset_costs(name: str) -> None:
    config = PRESETS[name]
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    (line,) = [line for line in readme.splitlines() if line.startswith(f"| `{name}` |")]
    assert [cell.strip() for cell in line.split("|")][5:8] == [
        f"{num_parameters(config) / 1e6:,.1f} M",
        f"{session_num_bytes(config) / 1e6:,.1f} MB",
        f"{prefill_flops_per_token(config) / 1e6:,.0f} M",
    ]


def test_the_preset_of_fifty_million_is_the_published_one() -> None:
    config = PRESETS["atlas-50m"]
    assert num_parameters(config) == 56_341_072
    spec = state_spec(config)
    matrices = [each for name, each in spec.items() if name.endswith((".memory.w", ".momentum.w"))]
    assert sum(math.prod(each.shape) * each.dtype.itemsize for each in matrices) == 16_777_216

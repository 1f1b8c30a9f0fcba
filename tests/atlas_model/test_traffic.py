"""The bytes that a step has to move, worked out by hand for the tiny model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from atlas_model.config import AtlasConfig, AttentionConfig
from atlas_model.presets import DEMO, PRESETS
from atlas_model.state import session_num_bytes, state_spec
from atlas_model.traffic import Traffic, decode_traffic, decode_traffic_by_tensor, prefill_traffic
from tests.tiny import TINY_MEMORY, tiny_config, tiny_model

READ_BY_CHUNK = replace(TINY_MEMORY, read_granularity="chunk")


def traffic_of(config: AtlasConfig, field: str) -> tuple[float, float]:
    traffic = decode_traffic_by_tensor(config)[f"layers.0.{field}"]
    return traffic.num_bytes_read, traffic.num_bytes_written


def test_a_piece_of_a_prompt_takes_the_whole_state_in_and_out() -> None:
    assert prefill_traffic(DEMO) == Traffic(session_num_bytes(DEMO), session_num_bytes(DEMO))


@pytest.mark.parametrize("config", [*PRESETS.values(), *(tiny_config(layout=each) for each in ("mag", "mal", "swa"))])
def test_every_tensor_of_a_state_moves_and_none_more_than_once_each_way(config: AtlasConfig) -> None:
    spec = state_spec(config)
    traffic = decode_traffic_by_tensor(config)
    assert list(traffic) == list(spec)
    for name, each in traffic.items():
        num_bytes = math.prod(spec[name].shape) * spec[name].dtype.itemsize
        assert 0 < each.num_bytes_read <= num_bytes, name
        assert 0 < each.num_bytes_written <= num_bytes, name
    total = decode_traffic(config)
    assert total.num_bytes_read == pytest.approx(sum(each.num_bytes_read for each in traffic.values()))
    assert total * 3 == Traffic(3 * total.num_bytes_read, 3 * total.num_bytes_written)


def test_a_token_that_reads_the_chunk_start_needs_the_chunk_at_its_end_alone() -> None:
    """Two heads, 5 tokens a chunk, a window of 3; of 64-bit numbers: keys of 8, gates of 4, matrices of 19 x 8."""
    by_chunk, by_token = tiny_config(memory=READ_BY_CHUNK), tiny_config(memory=TINY_MEMORY)
    matrix = math.prod(state_spec(by_chunk)["layers.0.memory.w"].shape) * 8
    for config in (by_chunk, by_token):
        assert traffic_of(config, "memory.w") == (matrix, matrix / 5)
    assert traffic_of(by_chunk, "momentum.w") == (matrix / 5, matrix / 5)
    assert traffic_of(by_token, "momentum.w") == (matrix, matrix / 5)
    assert traffic_of(by_chunk, "keys") == (2 * 8 * 8 * (2 + 4) / 5, 2 * 8 * 8)
    assert traffic_of(by_token, "keys") == (2 * 8 * 8 * (2 + 2), 2 * 8 * 8)
    assert traffic_of(by_token, "gates") == (2 * 4 * 8 * (2 + 2), 2 * 4 * 8)


def test_a_window_and_a_tail_are_read_whole_and_written_a_token_at_a_time() -> None:
    config = tiny_config()
    assert traffic_of(config, "attention.values") == (6 * 16 * 8, 16 * 8)
    assert traffic_of(config, "convolution") == (3 * 48 * 8, 48 * 8)
    segment = AttentionConfig(num_heads=2, window=10)
    config = tiny_config(layout="mac", attention=segment, memory=replace(TINY_MEMORY, omega_window=1))
    assert traffic_of(config, "attention.values") == (9 * 2 * 16 * 8 / 2, 2 * 16 * 8)


def test_matrices_are_written_where_a_chunk_ends_and_nowhere_else() -> None:
    """What the spreading over a chunk's tokens stands for."""
    config = tiny_config(memory=READ_BY_CHUNK)
    model = tiny_model(config)
    state = model.initial_state(1)
    changed = []
    with torch.inference_mode():
        for token_id in range(10):
            _, new = model.step(torch.tensor([token_id]), state)
            before, after = state.layers[0].memory, new.layers[0].memory
            assert before is not None
            assert after is not None
            changed.append(not torch.equal(before.memory["w"], after.memory["w"]))
            state = new
    assert changed == [False, False, False, False, True] * 2

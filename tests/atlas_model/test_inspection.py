"""What is told about a memory is what is in it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from atlas_model.inspection import inspect_memory
from tests.tiny import TINY_MEMORY, tiny_config, tiny_model


def test_a_memory_that_has_read_nothing_is_where_it_began() -> None:
    model = tiny_model(tiny_config(memory=replace(TINY_MEMORY, network="mlp")))
    reports = inspect_memory(model, model.initial_state(1))
    assert [(each.layer, each.head) for each in reports] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for each in reports:
        assert each.recent is None
        assert set(each.matrices) == {"w_in", "w_out"}
        for matrix in each.matrices.values():
            assert matrix.distance_from_initial == 0
            assert matrix.norm > 0
    assert all(
        matrix.norm == matrix.effective_rank == 0
        for each in inspect_memory(tiny_model(tiny_config()), tiny_model(tiny_config()).initial_state(1))
        for matrix in each.matrices.values()
    )


def test_norms_ranks_and_singular_values_are_those_of_the_state() -> None:
    model = tiny_model(tiny_config())
    state = model(torch.arange(40)[None].expand(2, -1)).state
    weights = state.layers[1].memory.memory["w"]
    weights[1, 0] = 0.0
    weights[1, 0, 0, 0], weights[1, 0, 1, 1] = 3.0, 3.0
    report = inspect_memory(model, state, row=1)[2]
    matrix = report.matrices["w"]
    assert (report.layer, report.head) == (1, 0)
    assert matrix.effective_rank == pytest.approx(2.0)
    assert matrix.norm == pytest.approx(18**0.5)
    assert matrix.singular_values[:3] == pytest.approx((3.0, 3.0, 0.0))
    assert matrix.momentum_norm == pytest.approx(float(state.layers[1].memory.momentum["w"][1, 0].norm()))


def test_recent_means_are_over_the_open_chunk_and_a_known_key_does_not_surprise() -> None:
    config = tiny_config()
    model = tiny_model(config)
    size = config.memory.memory_chunk_size
    output = model(torch.arange(size + 3)[None])
    report = inspect_memory(model, output.state)[0]
    assert report.num_recent_tokens == 3
    assert report.recent is not None
    opened = [gate[0, 0, -3:].mean() for gate in (output.gates[0].token_gate, output.gates[0].inner_lr)]
    assert (report.recent.token_gate, report.recent.inner_lr) == pytest.approx(tuple(float(each) for each in opened))
    memory = output.state.layers[0].memory
    start = config.memory.omega_window - 1
    features = model.blocks[0].mixer.memory.feature_map(memory.keys[:, :, start : start + 3])  # type: ignore[union-attr, operator]
    memory.values[:, :, start : start + 3] = features @ memory.memory["w"]
    known = inspect_memory(model, output.state)[0].recent
    assert known is not None
    assert known.surprise == pytest.approx(0.0, abs=1e-20)
    assert report.recent.surprise > 1e-3


def test_an_inspection_of_a_chunks_end_has_nothing_recent() -> None:
    config = tiny_config()
    state = tiny_model(config)(torch.arange(2 * config.memory.memory_chunk_size)[None]).state
    assert all(each.recent is None for each in inspect_memory(tiny_model(config), state))

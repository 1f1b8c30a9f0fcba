"""The native kernels against AtlasModel.step: the same scores and the same state, but for rounding."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import atlas_model
from atlas_model.causal_lm import AtlasForCausalLM
from atlas_model.config import AtlasConfig, AttentionConfig
from atlas_model.model import AtlasModel
from atlas_model.native import NotCoveredError, native_decoder
from atlas_model.rounded_products import round_products
from atlas_model.state import State
from tests.atlas_model.memory_cases import largest_error
from tests.atlas_model.native_cases import COVERED, DELTA_MEMORY, delta_config, drawn_covered_models, needs_compiler
from tests.atlas_model.test_model import TOLERANCE, assert_same_state, tokens
from tests.tiny import TINY_MEMORY, tiny_config, tiny_model

pytestmark = needs_compiler

DEMO = Path(atlas_model.__file__).parent / "pretrained" / "atlas-demo"
POSITIONS = [0, 3, 4, 9, 14, 17]
every_covered = pytest.mark.parametrize("config", COVERED.values(), ids=COVERED.keys())


def states_at(model: AtlasModel, positions: list[int]) -> State:
    """One row at each of the positions, all of different tokens; tensors of its own, without gaps."""
    states = []
    for row, position in enumerate(positions):
        state = model.initial_state(1)
        states.append(model(tokens(model.config, 1, position, seed=row), state).state if position else state)
    return State.concatenate(states)


def assert_steps_are_equal(model: AtlasModel, start: State, num_steps: int, tolerance: float) -> None:
    decoder, mine, theirs = native_decoder(model), start.clone(), start
    for ids in tokens(model.config, num_steps, start.batch_size, seed=5):
        logits = decoder.step(ids, mine)
        expected, theirs = model.step(ids, theirs)
        assert largest_error(logits.double(), expected.double()) <= tolerance
    assert_same_state(mine, theirs, tolerance)


@every_covered
def test_rows_anywhere_in_their_chunks_step_as_the_model_does(config: AtlasConfig) -> None:
    model = tiny_model(config)
    assert_steps_are_equal(model, states_at(model, POSITIONS), 13, TOLERANCE)


@every_covered
def test_float32_steps_are_the_models_but_for_rounding(config: AtlasConfig) -> None:
    model = tiny_model(replace(config, state_dtype="float32"))
    assert_steps_are_equal(model, states_at(model, POSITIONS), 8, 1e-5)


@settings(max_examples=25, deadline=None)
@given(config=drawn_covered_models(), apart=st.integers(1, 9), seed=st.integers(0, 100))
def test_any_covered_model_steps_as_without_the_kernels(config: AtlasConfig, apart: int, seed: int) -> None:
    model = tiny_model(config, seed)
    if config.memory.step == "free":
        for mixer in model.mixers:
            mixer.gate_maps.log_max_inner_lr.fill_(math.log(1e-3))
    assert_steps_are_equal(model, states_at(model, [0, apart]), 9, TOLERANCE)


@pytest.mark.parametrize("num_rows", [1, 2, 7, 70])
def test_the_shipped_model_steps_as_without_the_kernels(num_rows: int) -> None:
    model = AtlasForCausalLM.from_pretrained(DEMO).model
    start = states_at(model, [24])
    start = start.gather(torch.zeros(num_rows, dtype=torch.int64))
    decoder, mine, theirs = native_decoder(model), start.clone(), start
    # Through the end of a chunk.
    for ids in tokens(model.config, 18, num_rows):
        logits = decoder.step(ids, mine)
        expected, theirs = model.step(ids, theirs)
        assert (logits - expected).norm() <= 1e-5 * expected.norm()
    for (name, tensor), other in zip(mine.named_tensors().items(), theirs.named_tensors().values(), strict=True):
        assert (tensor.double() - other.double()).norm() <= 1e-5 * other.double().norm(), name


def bits_after(model: AtlasModel, state: State, ids: Tensor) -> list[Tensor]:
    """Of a row: logits and state after some steps."""
    decoder, state = native_decoder(model), state.clone()
    logits = [decoder.step(each, state) for each in ids]
    return [*logits, *state.named_tensors().values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_is_the_same_bits_whoever_else_is_in_the_batch(dtype: torch.dtype) -> None:
    model = tiny_model(delta_config(dtype, feature_norm="unit"))
    start = states_at(model, [*POSITIONS, 30])
    ids = tokens(model.config, 6, start.batch_size)
    together = bits_after(model, start, ids)
    for row in range(start.batch_size):
        pick = torch.tensor([row])
        alone = bits_after(model, start.gather(pick), ids[:, pick])
        assert all(torch.equal(a[pick], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("num_rows", [1, 5, 40])
def test_threads_change_no_bit(num_rows: int) -> None:
    model = AtlasForCausalLM.from_pretrained(DEMO).model
    start = states_at(model, [27]).gather(torch.zeros(num_rows, dtype=torch.int64))
    ids = tokens(model.config, 6, num_rows)
    alone = bits_after(model, start, ids)
    try:
        for num_threads in (2, 3):
            torch.set_num_threads(num_threads)
            shared = bits_after(model, start, ids)
            assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    finally:
        torch.set_num_threads(1)


def test_at_position_ten_million_a_step_is_the_models() -> None:
    model = tiny_model(delta_config())
    start = states_at(model, [20, 23])
    far = replace(start, position=start.position + 10_000_000)
    assert_steps_are_equal(model, far, 7, 1e-7)


def test_an_id_out_of_the_vocabulary_is_refused_and_nothing_has_changed() -> None:
    model = tiny_model(delta_config())
    start = states_at(model, [3, 4])
    state = start.clone()
    decoder = native_decoder(model)
    for wrong in (-1, model.config.vocab_size):
        with pytest.raises(IndexError, match="vocabulary"):
            decoder.step(torch.tensor([1, wrong]), state)
    assert all(map(torch.equal, state.named_tensors().values(), start.named_tensors().values()))


def test_ids_that_are_a_column_of_others_are_read_as_they_are() -> None:
    model = tiny_model(delta_config())
    start, ids = states_at(model, POSITIONS), tokens(model.config, len(POSITIONS), 3)
    decoder = native_decoder(model)
    expected = decoder.step(ids[:, 1].clone(), start.clone())
    assert torch.equal(decoder.step(ids[:, 1], start.clone()), expected)


def test_what_is_not_a_number_stays_none() -> None:
    """So that the engine sees it: of that row alone."""
    model = tiny_model(delta_config(torch.float32))
    state = states_at(model, [3, 4])
    memory = state.layers[0].memory
    assert memory is not None
    memory.memory["w"][1, 0, 0, 0] = math.nan
    logits = native_decoder(model).step(torch.tensor([1, 2]), state)
    assert logits[0].isfinite().all()
    assert logits[1].isnan().all()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (tiny_config(memory=TINY_MEMORY), "delta rule"),
        (tiny_config(memory=replace(DELTA_MEMORY, query_projection="keys")), "queries are projected"),
        (tiny_config(memory=replace(DELTA_MEMORY, network="mlp")), "delta rule"),
        (tiny_config(layout="swa"), "layout 'swa'"),
        (tiny_config(layout="mal", memory=DELTA_MEMORY), "layout 'mal'"),
        (tiny_config(layout="mac", memory=DELTA_MEMORY, attention=AttentionConfig(2, 10)), "layout 'mac'"),
        (tiny_config(torch.float32, memory=DELTA_MEMORY, state_dtype="bfloat16"), "state_dtype is bfloat16"),
    ],
)
def test_a_model_that_the_kernels_do_not_compute_is_refused_with_the_reason(config: AtlasConfig, reason: str) -> None:
    with pytest.raises(NotCoveredError, match=reason):
        native_decoder(tiny_model(config))


def test_a_model_whose_layers_round_is_refused() -> None:
    model = tiny_model(delta_config(torch.float32))
    round_products(model)
    with pytest.raises(NotCoveredError, match="bfloat16"):
        native_decoder(model)

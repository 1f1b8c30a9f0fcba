"""Rows 1-3 of the correctness table: closed gradients, and naive = chunk = recurrent for any split of the tokens.

Float64 to 1e-9, outputs and every field of the state; gates at exactly 0 and at their maximum are among the inputs.

    fixed grid   (gd token bounded | gd token free | gd chunk bounded | muon per chunk | muon per token)
                 x (matrix | mlp | gated_mlp) x (omega_window 1 | 2 | 4 | 9, longer than the chunk)
                 x (degree 1 | 2; gated_mlp: 2), and 18 more for the objectives, retentions and features
    drawn        the whole cross product that a configuration allows: rule, granularities, step, network, objective,
                 retention and its target, degree 1-3, feature kind and norm, widths, chunk, window, momentum
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atlas_model.config import MemoryConfig
from atlas_model.gates import Gates
from atlas_model.memory import MemoryInputs, MemoryState, chunk, naive, recurrent
from atlas_model.memory_networks import NETWORKS
from atlas_model.objectives import OBJECTIVES
from tests.atlas_model.memory_cases import (
    BASE,
    DELTA_RULE,
    Case,
    configurations,
    drawn_configurations,
    largest_error,
    make_case,
    named,
)

CONFIGURATIONS = configurations()
TOLERANCE = 1e-9
FLOAT32_TOLERANCE = {"matrix": 2e-5, "mlp": 2e-4, "gated_mlp": 2e-4}


def assert_equal(
    actual: tuple[Tensor, MemoryState], expected: tuple[Tensor, MemoryState], tolerance: float = TOLERANCE
) -> None:
    assert largest_error(actual[0], expected[0]) <= tolerance
    expected_fields = named(expected[1])
    for name, field in named(actual[1]).items():
        assert largest_error(field, expected_fields[name]) <= tolerance, name


def feed_recurrent(case: Case) -> tuple[Tensor, MemoryState]:
    state, position, outputs = case.state, case.position, []
    for at in range(case.inputs.keys.shape[2]):
        output, state = recurrent(case.rule, case.piece(at, at + 1), state, position)
        outputs.append(output)
        position = position + 1
    return torch.cat(outputs, dim=2), state


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("value_width", [4, 3])
def test_closed_form_gradient_equals_autograd(network: str, objective: str, value_width: int) -> None:
    config = replace(BASE, network=network, objective=objective, step="free", value_width=value_width, feature_degree=2)
    case = make_case(config, num_tokens=5)
    features = case.rule.feature_map(case.inputs.keys)
    weights = {name: value.clone().requires_grad_() for name, value in case.state.memory.items()}
    answer = case.rule.network.apply(features, case.inputs.keys, lambda name, x: x @ weights[name])
    loss = case.rule.objective.loss(answer, case.inputs.values).sum()
    expected = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    factors = case.rule.factors(features, case.inputs.keys, case.inputs.values, case.state.memory)
    for name, (left, right) in factors.items():
        assert largest_error(left.mT @ right, expected[name]) <= 1e-10, name


@pytest.mark.parametrize("num_tokens", [1, 5, 6, 7, 12, 17])
@pytest.mark.parametrize("config", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_chunk_form_equals_naive_form(config: MemoryConfig, num_tokens: int) -> None:
    case = make_case(config, num_tokens)
    expected = naive(case.rule, case.inputs, case.state, case.position)
    assert_equal(chunk(case.rule, case.inputs, case.state, case.position), expected)


@given(drawn_configurations(), st.integers(1, 14), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_all_forms_agree_whatever_the_configuration(config: MemoryConfig, num_tokens: int, seed: int) -> None:
    """A free step is small here: with a large one a deep memory runs away, and two roads to infinity need not meet."""
    case = make_case(config, num_tokens, seed=seed, max_inner_lr=1e-3 if config.step == "free" else 1.5)
    expected = naive(case.rule, case.inputs, case.state, case.position)
    assert_equal(chunk(case.rule, case.inputs, case.state, case.position), expected)
    assert_equal(feed_recurrent(case), expected)


@pytest.mark.parametrize("config", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_recurrent_form_fed_token_by_token_equals_chunk_form_once(config: MemoryConfig) -> None:
    case = make_case(config, num_tokens=15)
    assert_equal(feed_recurrent(case), chunk(case.rule, case.inputs, case.state, case.position))


@pytest.mark.parametrize("config", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_any_split_into_two_calls_equals_one_call(config: MemoryConfig) -> None:
    num_tokens = 14
    case = make_case(config, num_tokens)
    expected = chunk(case.rule, case.inputs, case.state, case.position)
    for split in range(1, num_tokens):
        first, state = chunk(case.rule, case.piece(0, split), case.state, case.position)
        second, state = chunk(case.rule, case.piece(split, num_tokens), state, case.position + split)
        assert_equal((torch.cat([first, second], dim=2), state), expected)


@pytest.mark.parametrize("name", list(CONFIGURATIONS)[::5])
def test_naive_form_continues_from_a_state(name: str) -> None:
    case = make_case(CONFIGURATIONS[name], num_tokens=13)
    expected = naive(case.rule, case.inputs, case.state, case.position)
    first, state = naive(case.rule, case.piece(0, 8), case.state, case.position)
    second, state = naive(case.rule, case.piece(8, 13), state, case.position + 8)
    assert_equal((torch.cat([first, second], dim=2), state), expected)


@pytest.mark.parametrize("config", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_rows_of_different_phase_and_length_equal_each_row_alone(config: MemoryConfig) -> None:
    case = make_case(config, num_tokens=20)
    before = [3, 10]
    lengths = [9, 4]
    states, expected = [], []
    for row in range(2):
        alone = _row(case, row)
        _, state = chunk(alone.rule, alone.piece(0, before[row]), alone.state, alone.position)
        states.append(state)
        piece = alone.piece(before[row], before[row] + lengths[row])
        expected.append(chunk(alone.rule, piece, state, alone.position + before[row]))
    ragged = _stack([_row(case, row).piece(before[row], before[row] + max(lengths)) for row in range(2)])
    joined = MemoryState(
        {name: torch.cat([state.memory[name] for state in states]) for name in states[0].memory},
        {name: torch.cat([state.momentum[name] for state in states]) for name in states[0].momentum},
        torch.cat([state.keys for state in states]),
        torch.cat([state.values for state in states]),
        torch.cat([state.gates for state in states]),
    )
    outputs, state = chunk(case.rule, ragged, joined, torch.tensor(before), torch.tensor(lengths))
    for row in range(2):
        actual = (outputs[row : row + 1, :, : lengths[row]], _state_row(state, row))
        assert_equal(actual, expected[row])


@pytest.mark.parametrize("num_tokens", [5, 530, 1021])
def test_chunk_form_without_gradients_gives_the_same_and_leaves_the_state_it_was_given(num_tokens: int) -> None:
    """Also where there are more chunks than are prepared together."""
    case = make_case(DELTA_RULE, num_tokens, max_inner_lr=0.5)
    before = {name: tensor.clone() for name, tensor in named(case.state).items()}
    expected = chunk(case.rule, case.inputs, case.state, case.position)
    with torch.inference_mode():
        assert_equal(chunk(case.rule, case.inputs, case.state, case.position), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in named(case.state).items())
    general = replace(case.rule, config=replace(DELTA_RULE, max_momentum_decay=1e-300))
    state = replace(case.state, momentum={"w": torch.zeros_like(case.state.memory["w"])})
    outputs, after = chunk(general, case.inputs, state, case.position)
    assert_equal((outputs, replace(after, momentum={})), expected)


@pytest.mark.parametrize("name", [name for name, each in CONFIGURATIONS.items() if each.step == "bounded"][::3])
def test_chunk_form_in_float32_stays_near_float64(name: str) -> None:
    config = CONFIGURATIONS[name]
    exact, rough = make_case(config, 17), make_case(config, 17, torch.float32)
    expected = chunk(exact.rule, exact.inputs, exact.state, exact.position)
    actual = chunk(rough.rule, rough.inputs, rough.state, rough.position)
    assert_equal(actual, expected, FLOAT32_TOLERANCE[config.network])


def test_a_token_reads_only_what_came_before_it() -> None:
    """Changing token 9 changes no output before it, and those after it."""
    case = make_case(replace(BASE, omega_window=3), 14)
    base, _ = chunk(case.rule, case.inputs, case.state, case.position)
    keys = case.inputs.keys.clone()
    keys[:, :, 9] = -keys[:, :, 9]
    changed, _ = chunk(case.rule, replace(case.inputs, keys=keys), case.state, case.position)
    assert torch.equal(base[:, :, :9], changed[:, :, :9])
    assert not torch.allclose(base[:, :, 9:], changed[:, :, 9:])


def _row(case: Case, row: int) -> Case:
    pick = slice(row, row + 1)
    gates = case.inputs.gates
    inputs = replace(
        case.inputs,
        queries=case.inputs.queries[pick],
        keys=case.inputs.keys[pick],
        values=case.inputs.values[pick],
        gates=Gates.unstack(gates.stack()[pick]),
    )
    return Case(case.rule, _state_row(case.state, row), case.position[pick], inputs)


def _state_row(state: MemoryState, row: int) -> MemoryState:
    pick = slice(row, row + 1)
    return MemoryState(
        {name: weights[pick] for name, weights in state.memory.items()},
        {name: weights[pick] for name, weights in state.momentum.items()},
        state.keys[pick],
        state.values[pick],
        state.gates[pick],
    )


def _stack(rows: list[MemoryInputs]) -> MemoryInputs:
    gates = Gates.unstack(torch.cat([row.gates.stack() for row in rows]))
    return MemoryInputs(
        torch.cat([row.queries for row in rows]),
        torch.cat([row.keys for row in rows]),
        torch.cat([row.values for row in rows]),
        gates,
    )

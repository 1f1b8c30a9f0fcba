"""What the memory family is made of: networks and objectives are tables, and what makes no sense is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from atlas_model.config import ConfigError, MemoryConfig
from atlas_model.memory import chunk, naive
from atlas_model.memory_networks import NETWORKS, Factors, MatrixMemory, Slope, Weights
from atlas_model.named_rules import NAMED_RULES, REFUSED, named_memory
from atlas_model.objectives import OBJECTIVES, Dot
from tests.atlas_model.memory_cases import BASE, largest_error, make_case
from tests.atlas_model.test_memory_forms import assert_equal


class LogCosh:
    """sum log cosh(answer - value)."""

    has_bounded_curvature = True

    def loss(self, answer: Tensor, values: Tensor) -> Tensor:
        return (answer - values).cosh().log().sum(-1)

    def slope(self, answer: Tensor, values: Tensor) -> Tensor:
        return (answer - values).tanh()


class TanhMemory(MatrixMemory):
    """M(x) = tanh(x W)."""

    def apply(self, features: Tensor, residual: Tensor, linear: Any) -> Tensor:
        return super().apply(features, residual, linear).tanh()

    def factors(self, features: Tensor, residual: Tensor, slope: Slope, weights: Weights) -> Factors:
        answer = (features @ weights["w"]).tanh()
        return {"w": (features, slope(answer) * (1 - answer.square()))}


def test_a_new_objective_and_a_new_network_take_one_class_and_one_table_entry_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(OBJECTIVES, "log_cosh", lambda power, delta: LogCosh())
    monkeypatch.setitem(NETWORKS, "tanh", TanhMemory)
    config = replace(BASE, network="tanh", objective="log_cosh", omega_window=2)
    case = make_case(config, 14)
    actual = chunk(case.rule, case.inputs, case.state, case.position)
    assert_equal(actual, naive(case.rule, case.inputs, case.state, case.position))
    plain = make_case(replace(config, network="matrix", objective="l2"), 14)
    assert largest_error(actual[0], chunk(plain.rule, plain.inputs, plain.state, plain.position)[0]) > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "transformer"}, "network must be one of 'matrix'"),
        ({"objective": "l1"}, "objective must be one of 'l2'"),
        ({"objective": "dot"}, "objective 'dot' has no bound"),
        ({"objective": "lp"}, "objective 'lp' has no bound"),
        ({"objective_power": 1.0}, "objective_power"),
        ({"huber_delta": 0.0}, "huber_delta"),
        ({"feature_degree": 4}, "feature_degree"),
        ({"feature_degree": 2, "feature_width": 5}, "feature_width"),
        ({"omega_window": 0}, "omega_window"),
        ({"memory_chunk_size": 0}, "memory_chunk_size"),
        ({"max_momentum_decay": 1.0}, "max_momentum_decay"),
        ({"rule": "muon", "read_granularity": "chunk"}, "step to 'free'"),
        ({"rule": "muon", "step": "free"}, "needs read_granularity 'chunk'"),
        ({"muon_granularity": "token"}, "of rule 'muon' alone"),
        ({"retention": "none", "retention_target": "initial"}, "of retention 'decay' alone"),
        ({"retention": "row_norm"}, "does not start at 0"),
    ],
)
def test_what_no_memory_can_be_built_from_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MemoryConfig(**{**BASE.to_dict(), "newton_schulz": BASE.newton_schulz, **changes})


def test_row_norm_keeps_every_row_at_the_norm_it_began_with() -> None:
    config = replace(BASE, network="gated_mlp", retention="row_norm")
    case = make_case(config, 6 * 5)
    _, state = chunk(case.rule, case.inputs, case.state, case.position)
    for name, weights in state.memory.items():
        assert largest_error(weights.norm(dim=-1), case.rule.initial[name].norm(dim=-1)) <= 1e-10
        assert largest_error(weights, case.rule.initial[name]) > 0.1


def test_a_memory_that_decays_to_its_start_ends_there() -> None:
    case = make_case(replace(BASE, network="mlp", retention_target="initial"), 60)
    nothing = torch.zeros_like(case.inputs.gates.token_gate)
    gates = replace(case.inputs.gates, token_gate=nothing, retention=nothing + 0.5, momentum_decay=nothing)
    _, state = chunk(case.rule, replace(case.inputs, gates=gates), case.state, case.position)
    for name, weights in state.memory.items():
        assert largest_error(weights, case.rule.initial[name]) <= 1e-12


def test_muon_per_token_writes_nothing_while_its_window_is_shut() -> None:
    """Though its momentum, which Newton-Schulz would blow up to a full step, is not zero."""
    config = replace(BASE, rule="muon", muon_granularity="token", step="free", omega_window=2, retention="none")
    case = make_case(config, 12)
    gates = replace(case.inputs.gates, token_gate=torch.zeros_like(case.inputs.gates.token_gate))
    _, state = chunk(case.rule, replace(case.inputs, gates=gates), case.state, case.position)
    assert torch.equal(state.memory["w"], case.state.memory["w"])


def test_dot_writes_the_outer_products_of_linear_attention() -> None:
    """No momentum, nothing forgotten: the memory is its start plus the sum of eta gamma k v^T."""
    config = replace(BASE, objective="dot", step="free", retention="none", max_momentum_decay=0.0)
    case = make_case(config, 12)
    _, state = chunk(case.rule, case.inputs, case.state, case.position)
    scale = (case.inputs.gates.inner_lr * case.inputs.gates.token_gate)[..., None]
    expected = case.state.memory["w"] + case.inputs.keys.mT @ (scale * case.inputs.values)
    assert largest_error(state.memory["w"], expected) <= 1e-12
    assert not Dot.has_bounded_curvature


@pytest.mark.parametrize("name", NAMED_RULES)
def test_every_named_rule_computes_the_same_in_all_its_forms(name: str) -> None:
    config = named_memory(name, num_heads=2, key_width=4, value_width=4, memory_chunk_size=4, feature_width=2)
    case = make_case(config, 10)
    assert_equal(
        chunk(case.rule, case.inputs, case.state, case.position),
        naive(case.rule, case.inputs, case.state, case.position),
    )


def test_sliding_window_linear_attention_sums_each_outer_product_as_often_as_windows_hold_it() -> None:
    config = named_memory("swla", num_heads=2, key_width=4, value_width=4, omega_window=3, retention="none")
    case = make_case(config, 8)
    gates = case.inputs.gates
    ones = torch.ones_like(gates.inner_lr)
    inputs = replace(case.inputs, gates=replace(gates, inner_lr=ones, momentum_decay=0 * ones))
    outputs, _ = chunk(case.rule, inputs, case.state, case.position)
    times = torch.tensor([3.0, 3, 3, 3, 3, 3, 2, 1]).double()[:, None]
    memory = case.state.memory["w"] + inputs.keys.mT @ (times * gates.token_gate[..., None] * inputs.values)
    assert largest_error(outputs[:, :, -1:], inputs.queries[:, :, -1:] @ memory) <= 1e-12


@pytest.mark.parametrize("name", [*REFUSED, "lstm"])
def test_a_rule_that_is_not_on_the_axes_is_refused_and_not_approximated(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        named_memory(name, num_heads=1, key_width=4, value_width=4)

"""The parts of the memory by themselves: gates, features, Newton-Schulz, the bounded step, and row 7's reductions."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from atlas_model.config import MemoryConfig, NewtonSchulzConfig
from atlas_model.feature_map import FeatureMap, num_features
from atlas_model.gates import Gates, hard_sigmoid
from atlas_model.memory import MemoryInputs, chunk
from atlas_model.memory_networks import NETWORKS
from atlas_model.newton_schulz import newton_schulz, uses_gram_form
from tests.atlas_model.memory_cases import BASE, largest_error, make_case


def test_hard_sigmoid_reaches_exactly_zero_and_one_and_can_be_trained_out_of_both() -> None:
    x = torch.tensor([-5.0, -3.0, 0.0, 3.0, 5.0], requires_grad=True)
    assert hard_sigmoid(x).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    (wants_more,) = torch.autograd.grad(-hard_sigmoid(x).sum(), x)
    (wants_less,) = torch.autograd.grad(hard_sigmoid(x).sum(), x)
    slope = pytest.approx(1 / 6)
    assert (-wants_more).tolist() == [slope, slope, slope, 0.0, 0.0]
    assert wants_less.tolist() == [0.0, 0.0, slope, slope, slope]


@pytest.mark.parametrize(("key_width", "expected"), [(16, 153), (32, 561), (64, 2145)])
def test_packed_degree_two_has_as_many_features_as_monomials(key_width: int, expected: int) -> None:
    config = MemoryConfig(2, key_width, key_width, feature_degree=2, feature_width=key_width)
    assert num_features(config) == expected
    assert FeatureMap(config)(torch.zeros(1, 2, 3, key_width)).shape[-1] == expected


def test_features_have_the_taylor_kernel_with_learnable_coefficients() -> None:
    config = MemoryConfig(2, 6, 6, feature_degree=2, feature_width=6)
    feature_map = FeatureMap(config).double().requires_grad_(False)
    torch.manual_seed(0)
    x, y = torch.randn(2, 1, 2, 5, 6, dtype=torch.float64)
    products = x @ y.mT
    assert largest_error(feature_map(x) @ feature_map(y).mT, 0.01 + products + products.square() / 2) <= 1e-7
    feature_map.coefficient_roots.copy_(torch.tensor([[0.0, 0.5], [1.0, 2.0], [3.0, 0.0]]))
    first, second = (feature_map(x) @ feature_map(y).mT)[0]
    assert largest_error(first, products[0, 0] + 9 * products[0, 0].square()) <= 1e-12
    assert largest_error(second, 0.25 + 4 * products[0, 1]) <= 1e-12


def test_packed_degree_three_has_as_many_features_as_monomials_and_the_taylor_kernel() -> None:
    config = MemoryConfig(2, 4, 4, feature_degree=3, feature_width=4)
    assert num_features(config) == 1 + 4 + 10 + 20
    feature_map = FeatureMap(config).double().requires_grad_(False)
    feature_map.coefficient_roots.copy_(torch.tensor([0.1, 1.0, 0.5, 2.0]).double()[:, None].expand(-1, 2))
    torch.manual_seed(0)
    x, y = torch.randn(2, 1, 2, 5, 4, dtype=torch.float64)
    products = x @ y.mT
    expected = feature_map.coefficient_roots[0, 0] ** 2 + products + products.square() / 4 + 4 * products**3
    assert largest_error(feature_map(x) @ feature_map(y).mT, expected) <= 1e-12


def test_elementwise_features_are_the_powers_of_each_dimension_alone() -> None:
    config = MemoryConfig(1, 4, 4, feature_degree=3, feature_width=4, feature_kind="elementwise")
    assert num_features(config) == 1 + 4 + 4 + 4
    feature_map = FeatureMap(config).double().requires_grad_(False)
    feature_map.coefficient_roots.fill_(1.0)
    x = torch.randn(1, 1, 3, 4, dtype=torch.float64)
    assert largest_error(feature_map(x)[..., 1:], torch.cat([x, x**2, x**3], -1)) <= 1e-12


def test_feature_width_projects_only_the_second_degree() -> None:
    config = MemoryConfig(1, 8, 8, feature_degree=2, feature_width=3)
    feature_map = FeatureMap(config).double().requires_grad_(False)
    assert feature_map.projection is not None
    torch.manual_seed(0)
    x, y = torch.randn(2, 1, 1, 4, 8, dtype=torch.float64)
    projected = (x @ feature_map.projection) @ (y @ feature_map.projection).mT
    feature_map.coefficient_roots.fill_(1.0)
    assert largest_error(feature_map(x) @ feature_map(y).mT, 1 + x @ y.mT + projected.square()) <= 1e-12
    assert num_features(config) == 1 + 8 + 6


@pytest.mark.parametrize("kind", ["polynomial", "elementwise"])
@pytest.mark.parametrize("degree", [2, 3])
def test_unit_features_have_length_one_and_the_angles_of_the_papers(
    kind: Literal["polynomial", "elementwise"], degree: int
) -> None:
    config = MemoryConfig(2, 8, 8, feature_degree=degree, feature_width=3, feature_kind=kind)
    torch.manual_seed(0)
    paper, unit = (FeatureMap(replace(config, feature_norm=each)).double() for each in ("none", "unit"))
    unit.load_state_dict(paper.state_dict())
    paper.requires_grad_(False)
    unit.requires_grad_(False)
    x = torch.randn(1, 2, 5, 8, dtype=torch.float64)
    assert largest_error(unit(x).square().sum(-1), torch.ones(1, 2, 5)) <= 1e-12
    assert largest_error(cosine_similarity(unit(x), paper(x), dim=-1), torch.ones(1, 2, 5)) <= 1e-12


@pytest.mark.parametrize("shape", [(5, 5), (3, 11), (11, 3)])
def test_newton_schulz_brings_singular_values_near_one_at_any_scale(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(4, *shape, dtype=torch.float64) * torch.tensor([1e-6, 1.0, 1e3, 1e9]).double()[:, None, None]
    values = torch.linalg.svdvals(newton_schulz(matrices, NewtonSchulzConfig(num_steps=8)))
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3


@pytest.mark.parametrize(("shape", "is_gram"), [((6, 8), False), ((5, 40), True), ((40, 5), True), ((1, 3), True)])
def test_newton_schulz_on_the_small_matrix_is_that_on_the_large_one(shape: tuple[int, int], is_gram: bool) -> None:
    config = NewtonSchulzConfig(num_steps=5)
    assert uses_gram_form(config, *shape) == is_gram
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape, dtype=torch.float64)
    expected = matrices / matrices.flatten(1).norm(dim=1)[:, None, None]
    a, b, c = config.coefficients
    for _ in range(config.num_steps):
        gram = expected @ expected.mT
        expected = a * expected + b * gram @ expected + c * gram @ gram @ expected
    assert largest_error(newton_schulz(matrices, config), expected) <= 1e-6
    rough = newton_schulz(matrices.float(), config).double()
    assert largest_error(rough, newton_schulz(matrices, config)) <= 1e-4


@pytest.mark.parametrize("shape", [(384, 128), (128, 128), (96, 352)])
def test_newton_schulz_in_bfloat16_brings_singular_values_of_any_spread_below_two(shape: tuple[int, int]) -> None:
    left, _, right = torch.linalg.svd(torch.randn(*shape, generator=torch.Generator().manual_seed(5)), False)
    matrix = left * torch.logspace(0, -4, left.shape[1]) @ right
    values = torch.linalg.svdvals(newton_schulz(matrix.bfloat16(), NewtonSchulzConfig()).float())
    assert float(values.max()) < 1.5


@pytest.mark.parametrize("shape", [(6, 8), (5, 40), (40, 5)])
def test_newton_schulz_of_a_stack_is_that_of_each_of_its_matrices(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(2, 3, *shape, dtype=torch.float64)
    stacked = newton_schulz(matrices, NewtonSchulzConfig())
    assert largest_error(stacked[1, 2], newton_schulz(matrices[1, 2], NewtonSchulzConfig())) <= 1e-12


def test_newton_schulz_of_nothing_is_nothing() -> None:
    assert torch.equal(newton_schulz(torch.zeros(2, 3, 4), NewtonSchulzConfig()), torch.zeros(2, 3, 4))


def _equal_keys(config: MemoryConfig, num_tokens: int) -> MemoryInputs:
    key = torch.nn.functional.normalize(torch.ones(1, config.num_heads, 1, config.key_width).double(), dim=-1)
    keys = key.expand(-1, -1, num_tokens, -1)
    ones = torch.ones(1, config.num_heads, num_tokens, dtype=torch.float64)
    values = torch.ones(1, config.num_heads, num_tokens, config.value_width, dtype=torch.float64)
    return MemoryInputs(keys, keys, values, Gates(ones, ones, ones, ones * config.max_momentum_decay))


@pytest.mark.parametrize("network", NETWORKS)
def test_bounded_step_does_not_overshoot_where_the_free_step_explodes(network: str) -> None:
    """Chunks of equal keys, gates wide open, momentum at its maximum: the worst that a text can do."""
    norms: dict[str, float] = {}
    for step in ("free", "bounded"):
        config = replace(BASE, network=network, step=step, memory_chunk_size=32)
        case = make_case(config, 1)
        inputs = _equal_keys(config, 32 * 20)
        state = case.state
        memory = {name: weights[:1] for name, weights in state.memory.items()}
        momentum = {name: 0 * weights[:1] for name, weights in state.momentum.items()}
        start = replace(
            state, memory=memory, momentum=momentum, keys=state.keys[:1], values=state.values[:1], gates=state.gates[:1]
        )
        _, end = chunk(case.rule, inputs, start, torch.zeros(1, dtype=torch.int64))
        norms[step] = float(torch.stack([weights.norm() for weights in end.memory.values()]).max())
    assert not norms["free"] < 1e6
    assert norms["bounded"] < 20


def _run(config: MemoryConfig, num_tokens: int = 17, **gates: float) -> tuple[Tensor, dict[str, Tensor]]:
    case = make_case(config, num_tokens)
    shape = case.inputs.gates.retention.shape
    changed = replace(
        case.inputs.gates, **{name: torch.full(shape, value, dtype=torch.float64) for name, value in gates.items()}
    )
    outputs, state = chunk(case.rule, replace(case.inputs, gates=changed), case.state, case.position)
    return outputs, state.memory


def test_window_of_one_is_the_plain_delta_rule() -> None:
    """Row 7: c = 1, no momentum, free, chunk of one token: M <- alpha M - eta gamma x (x M - v), token by token."""
    config = replace(BASE, step="free", memory_chunk_size=1)
    case = make_case(config, 9)
    gates = replace(case.inputs.gates, momentum_decay=torch.zeros_like(case.inputs.gates.momentum_decay))
    inputs = replace(case.inputs, gates=gates)
    outputs, state = chunk(case.rule, inputs, case.state, case.position)
    memory = case.state.memory["w"]
    for at in range(9):
        x, v, q = (each[:, :, at : at + 1] for each in (inputs.keys, inputs.values, inputs.queries))
        alpha, eta, gamma = (gate[:, :, at, None, None] for gate in (gates.retention, gates.inner_lr, gates.token_gate))
        memory = alpha * memory - eta * gamma * x.mT @ (x @ memory - v)
        assert largest_error(outputs[:, :, at : at + 1], q @ memory) <= 1e-10
    assert largest_error(state.memory["w"], memory) <= 1e-10


def test_momentum_decay_of_zero_removes_the_momentum() -> None:
    """Row 7: what the momentum was before the chunk no longer matters."""
    case = make_case(replace(BASE, omega_window=2), 13)
    gates = replace(case.inputs.gates, momentum_decay=torch.zeros_like(case.inputs.gates.momentum_decay))
    inputs = replace(case.inputs, gates=gates)
    other = replace(case.state, momentum={name: 7.0 * weights for name, weights in case.state.momentum.items()})
    outputs, state = chunk(case.rule, inputs, case.state, case.position)
    other_outputs, other_state = chunk(case.rule, inputs, other, case.position)
    assert torch.equal(outputs, other_outputs)
    assert torch.equal(state.memory["w"], other_state.memory["w"])


@pytest.mark.parametrize("network", NETWORKS)
def test_shut_gates_keep_the_memory_bit_for_bit(network: str) -> None:
    """Row 7: nothing written, all kept, nothing pushed. A memory that must last 1e7 tokens may not leak here."""
    config = replace(BASE, network=network, omega_window=4)
    before = make_case(config, 17).state.memory
    _, after = _run(config, token_gate=0.0, retention=1.0, inner_lr=0.0)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_retention_of_zero_forgets_everything() -> None:
    _, after = _run(replace(BASE, memory_chunk_size=1), num_tokens=3, token_gate=0.0, retention=0.0, inner_lr=0.0)
    assert all(torch.equal(weights, torch.zeros_like(weights)) for weights in after.values())

"""The query-key projection against its definition, one token after the other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from atlas_model.gates import Gates
from atlas_model.memory import MemoryInputs
from atlas_model.query_projection import project_queries, projection_products
from tests.atlas_model.memory_cases import BASE, largest_error, make_case

NUM_TOKENS = 75


def case(seed: int = 0) -> tuple[MemoryInputs, Tensor]:
    """Gates shut, open and between; a sum that is not empty."""
    inputs = make_case(BASE, NUM_TOKENS, seed=seed).inputs
    before = torch.randn(2, BASE.num_heads, 3, BASE.key_width, dtype=torch.float64, generator=_generator(seed))
    return inputs, before.mT @ before


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_by_one(inputs: MemoryInputs, projection: Tensor) -> tuple[Tensor, Tensor]:
    projected = []
    for at in range(inputs.keys.shape[2]):
        key, query = inputs.keys[:, :, at, :, None], inputs.queries[:, :, at, :, None]
        gate, kept = (each[:, :, at, None, None] for each in (inputs.gates.token_gate, inputs.gates.retention))
        projection = kept * projection + gate * key @ key.mT
        projected.append(normalize((projection @ query)[..., 0], dim=-1))
    return torch.stack(projected, dim=2), projection


def test_blocks_of_tokens_give_what_the_definition_does() -> None:
    inputs, before = case()
    expected, expected_sum = one_by_one(inputs, before)
    projected, after = project_queries(inputs, before, None)
    assert largest_error(projected.queries, expected) <= 1e-9
    assert largest_error(after, expected_sum) <= 1e-9


def test_padding_neither_counts_nor_decays() -> None:
    inputs, before = case(1)
    lengths = torch.tensor([40, 0])
    _, after = project_queries(inputs, before, lengths)
    first = MemoryInputs(
        inputs.queries[:, :, :40],
        inputs.keys[:, :, :40],
        inputs.values[:, :, :40],
        Gates.unstack(inputs.gates.stack()[:, :, :40]),
    )
    assert largest_error(after[:1], project_queries(first, before, None)[1][:1]) <= 1e-12
    assert torch.equal(after[1], before[1])


def test_a_query_that_no_written_key_points_to_reads_nothing() -> None:
    inputs, before = case(2)
    keys = inputs.keys.clone()
    keys[..., -1] = 0.0
    queries = torch.zeros_like(inputs.queries)
    queries[..., -1] = 1.0
    projected, _ = project_queries(replace(inputs, keys=keys, queries=queries), torch.zeros_like(before), None)
    assert torch.count_nonzero(projected.queries) == 0


@pytest.mark.parametrize("key_width", [4, 16])
def test_the_operations_are_those_that_are_counted(key_width: int) -> None:
    inputs = make_case(replace(BASE, num_heads=1, key_width=key_width), 64).inputs
    with FlopCounterMode(display=False) as counter:
        project_queries(inputs, torch.zeros(2, 1, key_width, key_width, dtype=torch.float64), None)
    assert counter.get_total_flops() == 2 * 64 * 2 * projection_products(key_width)

"""Products with packed weights are what the plain ones are, for every number of rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import atlas_model
from atlas_model import packed_products
from atlas_model.causal_lm import AtlasForCausalLM
from atlas_model.packed_products import PackedEmbedding, PackedLinear, pack_products, supports_packed_products
from atlas_model.rounded_products import RoundedLinear, round_products
from atlas_model.tied_embedding import TiedEmbedding
from tests.tiny import tiny_config, tiny_model

DEMO = Path(atlas_model.__file__).parent / "pretrained" / "atlas-demo"
NUM_ROWS = [0, 1, 2, 4, 5, 33, 300]

needs_operators = pytest.mark.skipif(not supports_packed_products(), reason="this build of torch has no oneDNN")


@needs_operators
@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_is_the_plain_one_but_for_rounding(num_rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(48, 40, bias=bias).requires_grad_(False)
    packed = PackedLinear(plain)
    flat, deep = torch.randn(num_rows, 48), torch.randn(2, num_rows, 96)[..., ::2]
    for x in (flat, deep):
        torch.testing.assert_close(packed(x), plain(x), rtol=1e-5, atol=1e-5)


@needs_operators
@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_scores_of_a_packed_embedding_are_the_plain_ones_but_for_rounding(num_rows: int) -> None:
    torch.manual_seed(0)
    plain = TiedEmbedding(70, 48).requires_grad_(False)
    packed = PackedEmbedding(plain)
    hidden = torch.randn(num_rows, 48)
    torch.testing.assert_close(packed.scores(hidden), plain.scores(hidden), rtol=1e-5, atol=1e-5)
    assert torch.equal(packed(torch.arange(70)), plain.weight)


@needs_operators
def test_all_layers_are_packed_once_and_the_checkpoint_is_the_same() -> None:
    model = tiny_model(tiny_config(torch.float32))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pack_products(model)
    embedding = model.embedding
    assert isinstance(embedding, PackedEmbedding)
    assert all(isinstance(module, PackedLinear) for module in model.modules() if isinstance(module, nn.Linear))
    pack_products(model)
    assert model.embedding is embedding
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_layers_that_round_stay_rounded() -> None:
    model = tiny_model(tiny_config(torch.float32))
    round_products(model)
    rounded = [module for module in model.modules() if isinstance(module, RoundedLinear)]
    pack_products(model)
    assert [module for module in model.modules() if isinstance(module, RoundedLinear)] == rounded


def test_a_model_of_64_bits_and_one_without_the_operators_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, plain = tiny_model(tiny_config(torch.float64)), tiny_model(tiny_config(torch.float32))
    pack_products(exact)
    monkeypatch.setattr(packed_products, "_OPERATORS", ("_no_such_operator",))
    assert not supports_packed_products()
    pack_products(plain)
    for model in (exact, plain):
        assert not any(isinstance(module, PackedLinear | PackedEmbedding) for module in model.modules())


@needs_operators
def test_the_shipped_model_decodes_the_same_scores_and_state() -> None:
    plain, packed = (AtlasForCausalLM.from_pretrained(DEMO) for _ in range(2))
    pack_products(packed.model)
    for num_rows in (1, 3, 70):
        # Through the end of a chunk.
        token_ids = torch.randint(4096, (18, num_rows), generator=torch.Generator().manual_seed(num_rows))
        states = [model.model.initial_state(num_rows) for model in (plain, packed)]
        for ids in token_ids:
            expected, states[0] = plain.model.step(ids, states[0])
            scores, states[1] = packed.model.step(ids, states[1])
            assert (scores - expected).norm() < 1e-5 * expected.norm()
        for mine, theirs in zip(*(state.named_tensors().values() for state in states), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)

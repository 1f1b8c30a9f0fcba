"""What an engine puts in place of a model's layers is its own."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from atlas_model.packed_products import PackedLinear, pack_products, supports_packed_products
from atlas_model.rounded_products import RoundedLinear, supports_bfloat16_products
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.sequence import Sequence
from tests.engine.harness import answer
from tests.tiny import tiny_checkpoint, tiny_config, tiny_model


@pytest.mark.skipif(not supports_bfloat16_products("cpu"), reason="this processor has no bfloat16")
def test_each_engine_of_one_checkpoint_multiplies_as_it_is_told_and_leaves_the_model_as_it_was() -> None:
    checkpoint = tiny_checkpoint(torch.float32)
    before = [type(module) for module in checkpoint.model.modules()]
    ids = [7 + number % 90 for number in range(200)]

    def fed(**settings: Any) -> dict[str, torch.Tensor]:
        core = EngineCore(checkpoint, EngineConfig(max_num_sequences=1, **settings))
        return answer(core, Sequence("a", ids)).state.tensors.named_tensors()

    exact, rounded, again = fed(), fed(matmul_dtype="bfloat16"), fed()
    assert all(torch.equal(tensor, again[name]) for name, tensor in exact.items())
    assert any(not torch.equal(tensor, rounded[name]) for name, tensor in exact.items())
    assert [type(module) for module in checkpoint.model.modules()] == before
    assert PackedLinear not in before
    assert RoundedLinear not in before


@pytest.mark.skipif(not supports_packed_products(), reason="this build of torch has no oneDNN")
def test_a_model_with_packed_layers_can_be_copied() -> None:
    model = tiny_model(tiny_config(torch.float32))
    pack_products(model)
    twin, token_ids = copy.deepcopy(model), torch.arange(20).view(2, 10)
    assert any(isinstance(module, PackedLinear) for module in twin.modules() if isinstance(module, nn.Linear))
    assert torch.equal(twin(token_ids).logits, model(token_ids).logits)

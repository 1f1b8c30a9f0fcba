"""Dense layers in bfloat16: near the exact ones in what is said, and the state stays what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import atlas_model
from atlas_model.causal_lm import AtlasForCausalLM
from atlas_model.rounded_products import RoundedLinear, round_products, supports_bfloat16_products
from engine.config import EngineConfig
from tests.tiny import tiny_config, tiny_model

DEMO = Path(atlas_model.__file__).parent / "pretrained" / "atlas-demo"


def test_a_rounded_layer_is_exact_for_few_rows_and_near_for_many() -> None:
    torch.manual_seed(0)
    exact = nn.Linear(32, 24, bias=False)
    rounded = RoundedLinear(exact)
    few, many = torch.randn(2, 5, 32), torch.randn(2, 50, 32)
    assert torch.equal(rounded(few), exact(few))
    error = rounded(many) - exact(many)
    assert rounded(many).dtype == torch.float32
    assert 0 < error.norm() < 0.01 * exact(many).norm()


def test_gates_and_logits_stay_exact_and_weights_and_checkpoint_are_the_same() -> None:
    model = tiny_model(tiny_config(torch.float32))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    round_products(model)
    rounded = {name for name, module in model.named_modules() if isinstance(module, RoundedLinear)}
    parts = ("mixer.project", "mixer.output_gate", "mixer.out", "expand", "contract")
    assert rounded == {f"blocks.{index}.{part}" for index in range(2) for part in parts}
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_shipped_model_answers_the_same_and_a_state_goes_on_under_either_setting() -> None:
    exact, rounded = (AtlasForCausalLM.from_pretrained(DEMO) for _ in range(2))
    round_products(rounded.model)
    document = exact.encode(
        "Mary went to the garden. John took the lamp. It was a long day, and nobody else came to the house before the "
        "evening. The code of the north gate is 4 7 1."
    )
    question = exact.encode_turn("What is the code of the north gate?")
    answers = []
    for reads in (exact, rounded):
        _, state = reads(document)
        assert {tensor.dtype for tensor in state.named_tensors().values()} == {torch.int64, torch.float32}
        for answers_it in (exact, rounded):
            ids, _ = answers_it.generate(question, max_new_tokens=8, state=state)
            answers.append(exact.decode(ids))
    assert answers == ["4 7 1"] * 4


@pytest.mark.parametrize(
    ("flags", "expected"), [("fma avx512f avx512_bf16 sha_ni", True), ("amx_bf16", True), ("avx512f avx512_bf", False)]
)
def test_a_processor_has_bfloat16_when_its_flags_say_so(tmp_path: Path, flags: str, expected: bool) -> None:
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text(f"processor : 0\nflags\t\t: {flags}\nbugs : none\n")
    assert supports_bfloat16_products("cpu", cpu_info) is expected
    assert supports_bfloat16_products("cpu", tmp_path / "missing") is False


def test_bfloat16_is_taken_where_the_processor_has_it_and_refused_by_name_elsewhere() -> None:
    if supports_bfloat16_products("cpu"):
        assert EngineConfig(matmul_dtype="bfloat16").matmul_dtype == "bfloat16"
    else:
        with pytest.raises(ValueError, match="matmul_dtype"):
            EngineConfig(matmul_dtype="bfloat16")

"""Steps beside their limits: what the limit is made of is what a configuration says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from atlas_model.config import AttentionConfig
from atlas_model.packed_products import pack_products
from atlas_model.sizes import decode_flops_per_token, dense_flops_per_token
from atlas_model.state import session_num_bytes
from atlas_model.traffic import decode_traffic
from bench.__main__ import main
from bench.engine.roofline_steps import dense_products
from bench.products import MatrixProducts
from tests.atlas_model.native_cases import delta_config, needs_compiler
from tests.bench.running import run
from tests.tiny import TINY_MEMORY, save_tiny_checkpoint, tiny_config, tiny_model


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("layout", ["lmm", "mag", "mal", "mac", "swa"])
def test_the_dense_products_of_a_step_are_those_that_the_configuration_counts(
    layout: Literal["lmm", "mag", "mal", "mac", "swa"], batch_size: int
) -> None:
    attention = None if layout == "lmm" else AttentionConfig(num_heads=2, window=10)
    config = tiny_config(layout=layout, attention=attention, memory=replace(TINY_MEMORY, omega_window=1))
    assert dense_products(tiny_model(config), batch_size).flops == batch_size * dense_flops_per_token(config)


@pytest.mark.parametrize("batch_size", [1, 3, 9])
def test_packed_products_are_counted_as_the_plain_ones_are(batch_size: int) -> None:
    config = tiny_config(torch.float32)
    plain, packed = tiny_model(config), tiny_model(config)
    pack_products(packed)
    expected, counted = dense_products(plain, batch_size), dense_products(packed, batch_size)
    assert (counted.num_calls, counted.flops) == (expected.num_calls, expected.flops)
    counted.repeat()


def test_a_repeated_product_uses_the_weight_itself_and_other_numbers_for_the_rest() -> None:
    weight, tokens = torch.full((4, 4), 2.0), torch.ones(3, 4)
    products = MatrixProducts.of(lambda: (tokens @ weight) @ torch.ones(4, 5), [weight])
    assert (products.num_calls, products.dense().num_calls) == (2, 1)
    again = MatrixProducts.of(products.dense().repeat, [weight])
    assert again.dense().flops == again.flops == 2 * 3 * 4 * 4


def test_roofline_holds_every_step_to_its_limit(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--batch-sizes", "1,3", "--pieces", "1x10,2x5", "--turns", "2", "--buffer", "1", "--threads", "1"]
    document, _ = run(capsys, "roofline", "--model", str(model), *size, "--json", str(tmp_path / "roofline.json"))
    config = tiny_config()
    decodes, prefills = document["decode"], document["prefill"]
    assert [(row["batch_size"], row["is_aligned"]) for row in decodes] == [(1, True), (3, True), (3, False)]
    assert [(row["batch_size"], row["num_tokens"]) for row in prefills] == [(1, 10), (1, 10), (2, 5), (2, 5)]
    for row in decodes:
        assert row["products_flops"] == row["batch_size"] * dense_flops_per_token(config)
        assert row["state_num_bytes_read"] == row["batch_size"] * decode_traffic(config).num_bytes_read
        assert row["flops"] == row["batch_size"] * decode_flops_per_token(config) > row["products_flops"]
        assert row["tokens_per_second"] == pytest.approx(row["batch_size"] / row["seconds"])
    for row in prefills:
        assert row["state_num_bytes_written"] == row["batch_size"] * session_num_bytes(config)
        assert row["flops"] == pytest.approx(row["products_flops"], rel=0.3)
    for row in (*decodes, *prefills):
        assert 0 < row["factor"] < 1e4
        assert min(row["products_seconds"], row["state_seconds"], row["roof_seconds"]) > 0
    assert document["ratios"][1]["token_ratio"] == pytest.approx(decodes[1]["seconds"] / 3 / decodes[0]["seconds"])
    assert [row["batch_size"] for row in document["sampling"]] == [1, 3]
    assert json.loads((tmp_path / "roofline.json").read_text())["num_threads"] == 1


@needs_compiler
@pytest.mark.parametrize(("setting", "is_native"), [("require", True), ("off", False)])
def test_native_steps_are_held_to_the_shorter_of_both_products(
    setting: str, is_native: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny_checkpoint(tmp_path, delta_config())
    size = ["--batch-sizes", "2", "--pieces", "1x5", "--turns", "1", "--buffer", "1", "--threads", "1"]
    document, _ = run(capsys, "roofline", "--model", str(tmp_path), *size, "--native-kernels", setting)
    for row in document["decode"]:
        native = row["native_products_seconds"]
        assert (native is not None) == is_native
        products = min(row["products_seconds"], native) if is_native else row["products_seconds"]
        assert row["limit_seconds"] == pytest.approx(products + row["state_seconds"])
    assert document["prefill"][0]["native_products_seconds"] is None
    assert document["native_kernels"] == setting


def test_a_piece_that_is_no_number_of_chunks_is_refused(model: Path) -> None:
    with pytest.raises(SystemExit, match="multiple of 5 tokens"):
        main(["roofline", "--model", str(model), "--pieces", "1x7", "--buffer", "1"])

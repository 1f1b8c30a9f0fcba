"""The comparison with other people's models, as far as it needs none of their packages: shapes, rows, our own side."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from atlas_model import PRESETS, num_parameters
from bench.__main__ import main
from bench.peers.atlas import Atlas
from bench.peers.contender import likeliest
from bench.peers.peers import PEERS
from bench.peers.recurrent_shapes import RecurrentShape, mamba_shape, rwkv7_shape
from bench.peers.rows import Measurement, Row, fastest_of_each_package
from bench.peers.shapes import llama_num_parameters, llama_shape, titans_shape

DEMO = PRESETS["demo"]
# The most by which a peer may be smaller or larger than ours, in parameters that a token meets.
FACTOR = 1.35


@pytest.mark.parametrize("preset", ["demo", "atlas-50m"])
def test_peers_are_about_as_large_as_ours(preset: str) -> None:
    config = PRESETS[preset]
    peers = {
        "llama": llama_num_parameters(llama_shape(config)),
        "llama, grouped": llama_num_parameters(llama_shape(config, heads_per_key=4)),
        "rwkv7": rwkv7_shape(config).num_parameters_per_token,
        "mamba": mamba_shape(config).num_parameters_per_token,
    }
    ratios = {name: size / num_parameters(config) for name, size in peers.items()}
    assert all(1 / FACTOR < ratio < FACTOR for ratio in ratios.values()), ratios


def test_peers_have_our_width_depth_vocabulary_and_segments() -> None:
    llama, titans, rwkv7 = llama_shape(DEMO), titans_shape(DEMO), rwkv7_shape(DEMO)
    assert (llama["hidden_size"], llama["num_hidden_layers"], llama["vocab_size"]) == (256, 3, 4096)
    assert (llama["num_attention_heads"], llama["num_key_value_heads"], llama["head_dim"]) == (4, 4, 64)
    assert llama_shape(DEMO, heads_per_key=4)["num_key_value_heads"] == 1
    assert (titans["dim"], titans["depth"], titans["num_tokens"]) == (256, 3, 4096)
    assert (titans["segment_len"], titans["neural_memory_segment_len"], titans["neural_memory_batch_size"]) == (
        32,
        16,
        16,
    )
    assert int(DEMO.width * titans["ff_mult"] * 2 / 3) == DEMO.feed_forward_width
    assert (rwkv7.values["embedding_length"], rwkv7.values["block_count"], rwkv7.values["vocab_size"]) == (256, 3, 4096)


def test_a_table_that_is_only_looked_up_in_does_not_count_for_a_token() -> None:
    rwkv7, mamba = rwkv7_shape(DEMO), mamba_shape(DEMO)
    assert rwkv7.num_parameters - rwkv7.num_parameters_per_token == 4096 * 256
    assert mamba.num_parameters == mamba.num_parameters_per_token


def test_rwkv7_has_as_many_feed_forward_weights_as_ours() -> None:
    tensors = rwkv7_shape(DEMO).tensors
    names = ("blk.0.channel_mix_key.weight", "blk.0.channel_mix_value.weight")
    assert sum(math.prod(tensors[name].shape) for name in names) == 3 * DEMO.width * DEMO.feed_forward_width


@pytest.mark.parametrize("shape", [rwkv7_shape(DEMO), mamba_shape(DEMO)], ids=lambda shape: shape.architecture)
def test_every_tensor_is_drawn_in_its_shape_and_finite(shape: RecurrentShape) -> None:
    for name, tensor in shape.tensors.items():
        numbers = tensor.draw(tensor.shape)
        assert numbers.shape == tensor.shape, name
        assert bool(numbers.isfinite().all()), name


def test_a_row_is_the_medians_and_the_median_of_the_turns_own_ratios() -> None:
    row = Row.of(Measurement("package", "peer", "prefill", 2, 100, 100, [1.0, 2.0, 4.0], [4.0, 4.0, 4.0]))
    assert (row.tokens_per_second, row.peer_tokens_per_second) == (100.0, 50.0)
    assert (row.speed_ratio, row.num_turns) == (2.0, 3)


def test_a_package_is_judged_by_its_fastest_way() -> None:
    def row(package: str, peer: str, length: int, seconds: float) -> Row:
        return Row.of(Measurement(package, peer, "decode", 1, length, 1, [1.0], [seconds]))

    slow, fast, elsewhere = row("a", "slow", 10, 9.0), row("a", "fast", 10, 3.0), row("a", "slow", 20, 9.0)
    other = row("b", "other", 10, 1.0)
    assert fastest_of_each_package([slow, fast, elsewhere, other]) == [fast, elsewhere, other]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_token_of_a_broken_model_is_refused(broken: float) -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert likeliest(logits).tolist() == [[1], [0]]
    logits[1, 2] = broken
    with pytest.raises(FloatingPointError):
        likeliest(logits)


def test_our_side_goes_on_by_the_tokens_asked_for_and_leaves_the_engine_empty() -> None:
    ours = Atlas("atlas", DEMO, num_rows=2)
    with ours.writing(2, position=20, room=8) as write:
        write(3)
        generated = ours.core.stats().generation_tokens_total
        write(5)
        assert ours.core.stats().generation_tokens_total - generated == 2 * 5
    assert not ours.core.has_work
    ours.core.check_integrity()


def test_a_comparison_has_a_row_for_each_thing_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "peers.json"
    sizes = ["--prefill-lengths", "20,40", "--positions", "30", "--batch-size", "2", "--decode-tokens", "2"]
    main(["peers", "--peers", "atlas-mac", *sizes, "--turns", "2", "--threads", "1", "--json", str(path)])
    printed = capsys.readouterr().out.splitlines()
    document = json.loads(printed[-1])
    measured = [(row["phase"], row["num_rows"], row["length"]) for row in document["rows"]]
    assert measured == [
        ("prefill", 1, 20),
        ("prefill", 1, 40),
        ("prefill", 2, 20),
        ("decode", 1, 30),
        ("decode", 2, 30),
    ]
    assert document["fastest"] == document["rows"]
    assert [each["name"] for each in document["models"]] == ["atlas", "atlas-mac"]
    assert document["models"][0]["size"]["num_parameters"] == num_parameters(DEMO)
    turns = json.loads(path.read_text())["turns"]
    assert [len(each["seconds"]) for each in turns] == [len(each["peer_seconds"]) for each in turns] == [2] * 5
    assert len(printed) == 2 + 1 + 5 + 1 + 5 + 1


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, PEERS["transformers"], raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SystemExit, match=r"transformers needs the package transformers.*\[peers\]"):
        main(["peers", "--peers", "transformers"])

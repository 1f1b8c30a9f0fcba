"""Importing the public Atlas-MAG layout: what is carried over computes what it did, and the rest is said."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from atlas_model.checkpoint import CheckpointError, load_checkpoint
from atlas_model.importing.__main__ import main
from atlas_model.importing.conversion import Fate, convert
from atlas_model.importing.layout import LayoutError, Mixing, Source, read_source
from atlas_model.importing.report import CARD_FILE, RECIPE_FILE, REPORT_FILE, table, verdict
from atlas_model.text import ChatFormat
from atlas_model.training.loop import Corpus, Trainer
from atlas_model.training.recipe import RECIPES, load_recipe
from atlas_model.training.synthetic_prose import SyntheticProse
from tests.atlas_model.atlas_mag import HEAD_WIDTH, NUM_HEADS, NUM_LAYERS, WIDTH, atlas_mag_state
from tests.atlas_model.tokenizers import byte_level_tokenizer

State = dict[str, Tensor]


def written(path: Path, state: Any, **others: Any) -> Path:
    torch.save({"step": 500, "model_state_dict": state, "config": {"dim": WIDTH, "poly_rank": 12}} | others, path)
    return path


@pytest.fixture
def read(tmp_path: Path) -> Callable[[State], Source]:
    return lambda state: read_source(written(tmp_path / "checkpoint.pt", state))


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def turned(x: Tensor) -> Tensor:
    """Rotary angles, pairs (i, i + d/2), of [T, d]."""
    half = x.shape[-1] // 2
    angles = torch.outer(torch.arange(float(len(x))), 10_000.0 ** (-torch.arange(half) / half))
    first, second = x[:, :half], x[:, half:]
    return torch.cat([first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()], -1)


def reference_scores(state: State, ids: Tensor, attention_gate: Callable[[State], Tensor]) -> Tensor:
    """The public model's log-probabilities, its memory's part left out; attention times a gate, [T, vocab_size]."""
    x = state["tok_emb.weight"][ids] + state["w_init"]
    mask = torch.ones(len(ids), len(ids)).tril().log()
    for index in range(NUM_LAYERS):
        block = {name.removeprefix(f"blocks.{index}."): each for name, each in state.items()}
        h, heads = rms_norm(x, block["norm1.weight"]), []
        q, k, v = (linear(h, block[f"qkv.{name}.weight"]).split(HEAD_WIDTH, -1) for name in ("w_q", "w_k", "w_v"))
        for head in range(NUM_HEADS):
            query, key = (
                turned(rms_norm(each[head], block[f"qkv.{name}.weight"]))
                for each, name in ((q, "q_norm"), (k, "k_norm"))
            )
            heads.append((query @ key.T / HEAD_WIDTH**0.5 + mask).softmax(-1) @ v[head])
        x = x + linear(torch.cat(heads, -1), block["w_o.weight"]) * attention_gate(block)
        h = rms_norm(x, block["norm2.weight"])
        x = x + linear(
            silu(linear(h, block["ffn.w1.weight"])) * linear(h, block["ffn.w2.weight"]), block["ffn.w3.weight"]
        )
    return linear(rms_norm(x, state["norm_f.weight"]), state["lm_head.weight"]).log_softmax(-1)


GATES: dict[str, Callable[[State], Tensor]] = {
    "nothing": lambda block: torch.ones(WIDTH),
    "half": lambda block: torch.full((WIDTH,), 0.5),
    "bias": lambda block: (block["memory.output_scale"] * block["memory.output_norm.bias"]).sigmoid(),
}


@pytest.mark.parametrize(
    ("mixing", "has_output_norm", "gate"),
    [
        (Mixing.ATTENTION, False, "nothing"),
        (Mixing.ADDED, False, "nothing"),
        (Mixing.GATED, False, "half"),
        (Mixing.GATED, True, "bias"),
    ],
)
def test_a_token_gets_the_probabilities_that_the_source_gives_with_its_memory_at_rest(
    read: Callable[[State], Source], mixing: Mixing, has_output_norm: bool, gate: str
) -> None:
    state = atlas_mag_state(mixing, has_output_norm=has_output_norm)
    ids = torch.randint(0, 60, (90,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        scores = convert(read(state)).model(ids[None]).logits[0].log_softmax(-1)
    assert torch.allclose(scores, reference_scores(state, ids, GATES[gate]), atol=2e-5)
    assert not torch.allclose(scores, reference_scores(state, ids, lambda block: torch.zeros(WIDTH)), atol=1e-2)


@pytest.mark.parametrize("mixing", Mixing)
@pytest.mark.parametrize("has_uniform_norms", [True, False])
def test_every_tensor_of_both_sides_stands_in_the_table(
    read: Callable[[State], Source], mixing: Mixing, has_uniform_norms: bool
) -> None:
    state = atlas_mag_state(mixing, has_uniform_norms=has_uniform_norms)
    conversion = convert(read(state), vocab_size=64)
    sources = [row.source for row in conversion.rows if row.source]
    targets = [name.split("[")[0] for row in conversion.rows for name in row.target.split(", ") if name]
    assert [name for name in state if not any(fnmatch(name, pattern) for pattern in sources)] == []
    assert [pattern for pattern in sources if not any(fnmatch(name, pattern) for name in state)] == []
    ours = conversion.model.state_dict()
    assert [name for name in ours if not any(fnmatch(name, pattern) for pattern in targets)] == []
    assert [pattern for pattern in targets if not any(fnmatch(name, pattern) for name in ours)] == []


def test_only_an_attention_model_with_uniform_norms_and_one_embedding_is_said_to_have_no_difference(
    read: Callable[[State], Source],
) -> None:
    assert convert(read(atlas_mag_state(Mixing.ATTENTION))).differences == ()
    for mixing, word in (
        (Mixing.GATED, "attention * sigmoid(memory)"),
        (Mixing.ADDED, "sigmoid(memory_gate) * memory"),
    ):
        (difference,) = convert(read(atlas_mag_state(mixing))).differences
        assert word in difference
    conversion = convert(read(atlas_mag_state(Mixing.ATTENTION, has_uniform_norms=False)))
    assert "each dimension" in verdict(conversion)
    state = atlas_mag_state(Mixing.ATTENTION)
    conversion = convert(read(state | {"lm_head.weight": state["lm_head.weight"] + 1}))
    assert "output layer" in verdict(conversion)
    assert [row.source for row in conversion.rows if row.fate is Fate.NO_COUNTERPART] == ["lm_head.weight"]


def test_widths_degree_and_heads_come_from_the_shapes_and_prefixes_fall_away(read: Callable[[State], Source]) -> None:
    state = atlas_mag_state(Mixing.GATED)
    conversion = convert(read({f"module._orig_mod.{name}": each.half() for name, each in state.items()}))
    config = conversion.model.config
    assert (config.width, config.num_layers, config.vocab_size, config.feed_forward_width) == (16, 2, 60, 42)
    assert (config.memory.num_heads, config.memory.key_width, config.memory.feature_degree) == (2, 8, 2)
    assert config.attention is not None
    assert (config.attention.num_heads, config.attention.window) == (2, 512)


def without(name: str) -> Callable[[State], State]:
    return lambda state: {each: tensor for each, tensor in state.items() if each != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("blocks.1.ffn.w2.weight"), r"lacks blocks\.1\.ffn\.w2\.weight"),
        (without("tok_emb.weight"), r"lacks tok_emb\.weight"),
        (lambda state: {}, "no 'model_state_dict'"),
        (lambda state: {"tok_emb.weight": state["tok_emb.weight"]}, "no blocks"),
        (lambda state: state | {"blocks.0.attn.bias": torch.ones(2)}, r"unknown blocks\.0\.attn\.bias"),
        (lambda state: state | {"w_init": torch.ones(17)}, r"w_init is \[17\], it must be \[16\]"),
        (lambda state: state | {"blocks.0.ffn.w1.weight": torch.ones(3)}, "must have 2 dimensions"),
        (lambda state: state | {"blocks.0.memory.poly_norm.weight": torch.ones(45)}, "45 features of 8"),
        (lambda state: state | {"blocks.0.qkv.q_norm.weight": torch.ones(5)}, "heads of width 5"),
        (lambda state: state | {"norm_f.weight": torch.full((16,), torch.nan)}, r"norm_f\.weight is not finite"),
        (lambda state: state | {"w_init": 3.0}, "w_init is not a tensor"),
        (lambda state: state | {"module.w_init": torch.ones(16)}, "w_init is there twice"),
    ],
)
def test_a_file_that_is_not_wholly_of_the_layout_is_refused_by_name(
    read: Callable[[State], Source], change: Callable[[State], State], message: str
) -> None:
    with pytest.raises(LayoutError, match=message):
        read(change(atlas_mag_state(Mixing.GATED)))


class Trap:
    """Unpickling one would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.write_text, (self.path, "run"))


def test_a_file_that_holds_code_is_refused_and_the_code_never_runs(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    path = written(tmp_path / "trap.pt", atlas_mag_state(Mixing.GATED), config=Trap(proof))
    with pytest.raises(LayoutError, match="could run code"):
        read_source(path)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Trap(proof), protocol=2))
    with pytest.raises(LayoutError, match="could run code"):
        read_source(tmp_path / "bare.pt")
    assert not proof.exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 half a zip"])
def test_a_file_that_torch_did_not_write_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(LayoutError, match=r"file\.pt"):
        read_source(tmp_path / "file.pt")
    with pytest.raises(LayoutError, match="not a file"):
        read_source(tmp_path)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["importing", *map(str, arguments)])
    main()


def test_the_command_refuses_to_pretend_and_writes_nothing_without_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = written(tmp_path / "atlas.pt", atlas_mag_state(Mixing.GATED)), tmp_path / "out"
    with pytest.raises(SystemExit, match="--as-initialisation") as stopped:
        run(monkeypatch, checkpoint, "--out", out)
    assert isinstance(stopped.value.code, str)
    printed = capsys.readouterr().out
    assert "not the model that was imported" in printed
    assert all(f"{fate}:" in printed for fate in Fate)
    assert not out.exists()


def test_what_the_command_writes_loads_says_what_it_is_and_can_be_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, out = byte_level_tokenizer(), tmp_path / "imported"
    checkpoint = written(tmp_path / "atlas.pt", atlas_mag_state(Mixing.GATED, vocab_size=300))
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.file_bytes)
    flags = ("--tokenizer", tmp_path / "tokenizer.json", "--as-initialisation")
    run(monkeypatch, checkpoint, "--out", out, *flags)

    loaded = load_checkpoint(out)
    conversion = convert(read_source(checkpoint), tokenizer.vocab_size)
    assert loaded.model.config == conversion.model.config
    assert torch.equal(loaded.model.embedding.weight, conversion.model.embedding.weight)
    assert loaded.tokenizer.vocab_size == loaded.model.config.vocab_size == 400
    report = json.loads((out / REPORT_FILE).read_text())
    assert report["is_initialisation_only"]
    assert report["differences"] == list(conversion.differences)
    assert len(report["tensors"]) == len(conversion.rows)
    card = (out / CARD_FILE).read_text()
    assert verdict(conversion) in card
    assert table(conversion) in card

    recipe = load_recipe(out / RECIPE_FILE)
    assert recipe.model == loaded.model.config
    assert recipe.stages == RECIPES["demo"].stages
    corpus = Corpus(SyntheticProse(), loaded.tokenizer, ChatFormat())
    recipe = replace(RECIPES["smoke"], model=recipe.model)
    trainer = Trainer(recipe, corpus, tmp_path / "trained", 0, torch.float32)
    trainer.start_from(loaded.model)
    for _ in range(2):
        trainer.train_step()
    memory_out = trainer.model.state_dict()["blocks.0.mixer.out.weight"]
    assert float(memory_out.abs().max()) > 0
    with pytest.raises(SystemExit):
        run(monkeypatch, checkpoint, "--out", out, *flags)


def test_a_model_without_differences_needs_no_flag_and_one_without_a_tokenizer_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = (
        written(tmp_path / "atlas.pt", atlas_mag_state(Mixing.ATTENTION, vocab_size=400)),
        tmp_path / "out",
    )
    run(monkeypatch, checkpoint, "--out", out)
    assert "when a tokenizer.json or tokenizer.model is put there" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        load_checkpoint(out)
    (out / "tokenizer.json").write_bytes(byte_level_tokenizer().file_bytes)
    assert load_checkpoint(out).model.config.vocab_size == 400

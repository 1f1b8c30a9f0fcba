"""Checkpoints: what is written comes back, another model has another fingerprint, bad folders name what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas_model.checkpoint import CheckpointError, load_checkpoint
from atlas_model.config import AtlasConfig, AttentionConfig, ConfigError
from atlas_model.state import State, session_num_bytes
from atlas_model.training.recipe import RECIPES
from tests.atlas_model.tokenizers import byte_level_tokenizer
from tests.tiny import TINY_MEMORY, save_tiny_checkpoint, tiny_config, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_checkpoint(tmp_path / "tiny", tiny_config())
    return tmp_path / "tiny"


def test_a_loaded_model_computes_what_the_saved_one_did(folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    ids = torch.arange(12)[None]
    assert checkpoint.name == "tiny"
    assert torch.equal(checkpoint.model(ids).logits, tiny_model(tiny_config())(ids).logits)
    assert not any(parameter.requires_grad for parameter in checkpoint.model.parameters())


def test_fingerprint_is_stable_and_differs_for_other_weights_and_other_configurations(
    folder: Path, tmp_path: Path
) -> None:
    fingerprint = load_checkpoint(folder).fingerprint
    assert load_checkpoint(folder).fingerprint == fingerprint
    save_tiny_checkpoint(tmp_path / "weights", tiny_config(), seed=1)
    save_tiny_checkpoint(tmp_path / "config", tiny_config(norm_eps=1e-5))
    others = {load_checkpoint(tmp_path / name).fingerprint for name in ("weights", "config")}
    assert fingerprint not in others
    assert len(others) == 2


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.model"])
def test_a_missing_or_broken_file_is_named(folder: Path, file: str) -> None:
    (folder / file).write_bytes(b"\x80 not this")
    with pytest.raises(CheckpointError, match=file):
        load_checkpoint(folder)
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=file):
        load_checkpoint(folder)


def test_either_kind_of_tokenizer_is_part_of_the_fingerprint_and_two_of_them_are_refused(folder: Path) -> None:
    save_tiny_checkpoint(folder.parent / "other", tiny_config(vocab_size=400), tokenizer=byte_level_tokenizer())
    other = load_checkpoint(folder.parent / "other")
    assert other.tokenizer.encode("Anna") == byte_level_tokenizer().encode("Anna")
    file = folder.parent / "other" / "tokenizer.json"
    file.write_bytes(file.read_bytes() + b"\n")
    assert load_checkpoint(folder.parent / "other").fingerprint != other.fingerprint
    (folder / "tokenizer.json").write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match=r"both tokenizer\.model and tokenizer\.json"):
        load_checkpoint(folder)


def test_an_unknown_or_wrong_key_of_the_configuration_is_named(folder: Path) -> None:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    for change, name in [({"widht": 3}, "widht"), ({"width": "wide"}, "width"), ({"layout": "mad"}, "layout")]:
        (folder / "config.json").write_text(json.dumps(config | {"model": config["model"] | change}))
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(folder)


@pytest.mark.parametrize("config", [tiny_config(), tiny_config(memory_chunk_sizes=(1, 5)), RECIPES["demo"].model])
def test_a_configuration_survives_json(config: AtlasConfig) -> None:
    assert AtlasConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_chunk_that_nothing_would_see_is_refused() -> None:
    with pytest.raises(ConfigError, match="chunk"):
        tiny_config(layout="lmm", attention=None, memory=replace(TINY_MEMORY, read_granularity="chunk"))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"layout": "mal", "attention": None}, "have attention"),
        ({"layout": "lmm"}, "have attention"),
        ({"layout": "mac"}, "multiple of the memory_chunk_size"),
        ({"attention": AttentionConfig(num_heads=2, window=7, num_persistent=2)}, "layout 'mac' alone"),
        ({"memory_chunk_sizes": (5,)}, "one for each layer"),
        ({"memory_chunk_sizes": (5, 0)}, "at least 1"),
        (
            {"memory_chunk_sizes": (5, 8), "memory": replace(TINY_MEMORY, read_granularity="chunk")},
            "window that covers the chunk",
        ),
    ],
)
def test_a_model_that_cannot_be_is_refused(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        tiny_config(**changes)


@pytest.mark.parametrize(
    ("changes", "name"), [({"rule": "sgd"}, "rule"), ({"step": "fre"}, "step"), ({"num_heads": 2.5}, "num_heads")]
)
def test_a_choice_that_is_none_is_refused_however_a_configuration_is_built(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        replace(TINY_MEMORY, **changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="cuda: torch sees no CUDA device"):
        load_checkpoint(folder, "cuda")


def test_fewer_than_no_persistent_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_persistent must be at least 0"):
        AttentionConfig(num_heads=2, window=7, num_persistent=-1)


def test_named_tensors_rebuild_the_state_and_a_foreign_one_is_refused() -> None:
    config = tiny_config()
    state = tiny_model(config)(torch.arange(9)[None]).state
    named = state.named_tensors()
    rebuilt = State.from_named_tensors(config, named).named_tensors()
    assert all(torch.equal(rebuilt[name], tensor) for name, tensor in named.items())
    with pytest.raises(ValueError, match="exactly those"):
        State.from_named_tensors(config, {name: named[name] for name in list(named)[:-1]})
    with pytest.raises(ValueError, match="keys"):
        State.from_named_tensors(config, named | {"layers.0.keys": named["layers.0.keys"].float()})


def test_the_demo_keeps_within_its_session_size() -> None:
    assert session_num_bytes(RECIPES["demo"].model) <= 8 * 2**20

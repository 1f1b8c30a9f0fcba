"""A tiny model with random weights: every part of the real one, small enough for a test of milliseconds."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from atlas_model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from atlas_model.config import AtlasConfig, AttentionConfig, MemoryConfig
from atlas_model.model import AtlasModel
from atlas_model.text import ChatFormat, Tokenizer
from tests.atlas_model.tokenizers import small_tokenizer

TINY_MEMORY = MemoryConfig(
    num_heads=2,
    key_width=8,
    value_width=8,
    memory_chunk_size=5,
    omega_window=3,
    feature_degree=2,
    feature_width=4,
    max_momentum_decay=0.5,
)


def tiny_config(dtype: torch.dtype = torch.float64, **changes: Any) -> AtlasConfig:
    """The tiny configuration, with fields of AtlasConfig changed."""
    config = AtlasConfig(
        vocab_size=small_tokenizer().vocab_size,
        width=16,
        num_layers=2,
        feed_forward_width=24,
        layout="mag",
        memory=TINY_MEMORY,
        attention=AttentionConfig(num_heads=2, window=7),
        state_dtype="float64" if dtype == torch.float64 else "float32",
    )
    return replace(config, **changes)


def tiny_model(config: AtlasConfig, seed: int = 0) -> AtlasModel:
    """Random weights that do not depend on what ran before; gates from shut to open."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AtlasModel(config)
        with torch.no_grad():
            for mixer in model.mixers:
                mixer.gate_maps.linear.weight.mul_(4.0)
    return model.requires_grad_(False).eval()


def save_tiny_checkpoint(
    directory: Path, config: AtlasConfig, seed: int = 0, tokenizer: Tokenizer | None = None
) -> None:
    """Write the tiny model as a checkpoint folder, ready to serve."""
    save_checkpoint(directory, tiny_model(config, seed), tokenizer or small_tokenizer(), ChatFormat())


@cache
def _cached_checkpoint(config: AtlasConfig, seed: int) -> Checkpoint:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "tiny"
        save_tiny_checkpoint(directory, config, seed)
        return load_checkpoint(directory)


def tiny_checkpoint(dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> Checkpoint:
    """The tiny model as the engine gets it. Shared in a process: nobody may change it."""
    return _cached_checkpoint(tiny_config(dtype, **changes), seed)

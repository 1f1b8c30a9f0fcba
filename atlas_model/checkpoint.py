"""A model on disk: a folder with config.json, model.safetensors and a tokenizer. Nothing in it is ever unpickled.

config.json holds the model's configuration and its chat format; the tokenizer is a tokenizer.model (sentencepiece) or a
tokenizer.json (Hugging Face). The fingerprint names everything that decides what a saved state means: weights,
configuration, tokenizer, chat format and the schema of states.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from atlas_model.config import AtlasConfig, ConfigError
from atlas_model.model import AtlasModel
from atlas_model.state import memory_dtype
from atlas_model.text import ChatFormat, ChatFormatError, Tokenizer, TokenizerError, find_tokenizer, load_tokenizer

STATE_SCHEMA = 2
"""Version of what a State holds and means; it changes when the same weights would fill it differently."""

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


class CheckpointError(ValueError):
    """A folder that is not a checkpoint of this project; the message names the file."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that is ready to run: in eval mode, without gradients, in the dtype its memory is computed in."""

    name: str
    model: AtlasModel
    tokenizer: Tokenizer
    chat_format: ChatFormat
    fingerprint: str


def save_checkpoint(
    directory: Path,
    model: AtlasModel,
    tokenizer: Tokenizer | None,
    chat_format: ChatFormat,
    weights_dtype: torch.dtype | None = None,
) -> None:
    """Write a checkpoint folder. tokenizer: None leaves its file to be put there, until then the folder does not load.

    weights_dtype: what the weights are rounded to on disk; None keeps them exact.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to("cpu", weights_dtype or tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    config = {"model": model.config.to_dict(), "chat_format": chat_format.to_dict()}
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        (directory / tokenizer.file_name).write_bytes(tokenizer.file_bytes)
    save_file(weights, directory / WEIGHTS_FILE)


def load_checkpoint(directory: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint folder. Raises CheckpointError, which names the file and what is wrong with it."""
    directory = directory.resolve()
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / file).is_file():
            raise CheckpointError(f"{directory} is not a checkpoint: it has no {file}")
    config, chat_format = _read_config(directory / CONFIG_FILE)
    try:
        tokenizer_path = find_tokenizer(directory)
        tokenizer = load_tokenizer(tokenizer_path)
    except TokenizerError as error:
        raise CheckpointError(str(error)) from error
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(f"{tokenizer_path} has {tokenizer.vocab_size} pieces, the model only {config.vocab_size}")
    model = AtlasModel(config)
    try:
        weights = load_file(directory / WEIGHTS_FILE)
        model.load_state_dict({name: tensor.to(memory_dtype(config)) for name, tensor in weights.items()})
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{directory / WEIGHTS_FILE}: {error}") from error
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise CheckpointError(f"device {device}: torch sees no CUDA device here")
    model.requires_grad_(False).eval().to(device)
    return Checkpoint(directory.name, model, tokenizer, chat_format, _fingerprint(directory, tokenizer.file_name))


def _read_config(path: Path) -> tuple[AtlasConfig, ChatFormat]:
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.keys() != {"model", "chat_format"}:
            raise CheckpointError(f"{path}: the keys must be 'model' and 'chat_format'")
        return AtlasConfig.from_dict(values["model"]), ChatFormat.from_dict(values["chat_format"])
    except (ConfigError, ChatFormatError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _fingerprint(directory: Path, tokenizer_file: str) -> str:
    digest = hashlib.sha256(f"atlas state schema {STATE_SCHEMA}\n".encode())
    for file in (CONFIG_FILE, WEIGHTS_FILE, tokenizer_file):
        content = (directory / file).read_bytes()
        digest.update(f"{file} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()

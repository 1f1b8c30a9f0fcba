"""Which model the benches inside the engine run: a checkpoint folder, or a preset of the literature's sizes."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from atlas_model.checkpoint import Checkpoint, load_checkpoint
from atlas_model.model import AtlasModel
from atlas_model.packed_products import pack_products
from atlas_model.presets import PRESETS
from bench import report
from bench.workload import parse_length
from engine.config import NATIVE_KERNELS, EngineConfig


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--model",
        type=Path,
        default=report.SHIPPED_MODEL,
        metavar="DIR",
        help="checkpoint folder; default: the shipped one",
    )
    chosen.add_argument("--preset", choices=PRESETS, help="in its place a preset, with random weights")
    parser.add_argument("--threads", type=parse_length, help="torch's threads; default: torch's own choice")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--native-kernels", choices=NATIVE_KERNELS, default="auto", help="as of the server")


def open_model(arguments: argparse.Namespace) -> Checkpoint:
    """The model on its device as the engine runs it, in as many threads as were asked for."""
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    checkpoint = _load(arguments)
    pack_products(checkpoint.model)
    return checkpoint


def _load(arguments: argparse.Namespace) -> Checkpoint:
    """A preset has the shipped model's tokenizer."""
    if arguments.preset is None:
        return load_checkpoint(arguments.model, arguments.device)
    shipped = load_checkpoint(report.SHIPPED_MODEL)
    torch.manual_seed(0)
    model = AtlasModel(PRESETS[arguments.preset]).requires_grad_(False).eval().to(arguments.device)
    return Checkpoint(arguments.preset, model, shipped.tokenizer, shipped.chat_format, fingerprint=arguments.preset)


def engine_settings(arguments: argparse.Namespace) -> EngineConfig:
    return EngineConfig(device=str(arguments.device), native_kernels=arguments.native_kernels)


def model_header(checkpoint: Checkpoint, arguments: argparse.Namespace) -> report.Json:
    """What ran where, for the bench's document."""
    device = arguments.device
    return {
        "model": checkpoint.name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "num_threads": torch.get_num_threads(),
        "native_kernels": arguments.native_kernels,
    }

"""`python -m atlas_model.training.dead_zone --model DIR --out DIR --thresholds 0.05`: shut what is hardly open.

Gates that were trained to shut on prose stay open by a hundredth or two, and what that writes is little but without
end. A dead zone shuts them exactly, and needs no training: a gate is a line between its ends, so

    g <- k (g - threshold),   k = p / (p - threshold),   p = 1/3

is another line, the weights times k and another bias. p, about where gates stand on facts, stays as it is; beyond it
gates open a little further. A layer whose gates never reach its threshold writes nothing any more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from atlas_model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from atlas_model.model import AtlasModel

KEPT_GATE = 1 / 3
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@torch.no_grad()
def add_dead_zone(model: AtlasModel, thresholds: Sequence[float]) -> None:
    """Change the model's token_gates in place. thresholds: one for each layer with a memory, in [0, 1/3).

    Raises ValueError for another number of them, or others.
    """
    if len(thresholds) != len(model.mixers):
        raise ValueError(f"{len(thresholds)} thresholds for {len(model.mixers)} layers with a memory")
    if not all(0.0 <= threshold < KEPT_GATE for threshold in thresholds):
        raise ValueError("a threshold is at least 0 and below a third")
    for mixer, threshold in zip(model.mixers, thresholds, strict=True):
        slope = KEPT_GATE / (KEPT_GATE - threshold)
        weight, bias = (
            each[: mixer.num_heads] for each in (mixer.gate_maps.linear.weight, mixer.gate_maps.linear.bias)
        )
        # g = x / 6 + 1/2, and so for the new x: x' = k x + 6 (k (1/2 - threshold) - 1/2)
        weight.mul_(slope)
        bias.mul_(slope).add_(6.0 * (slope * (0.5 - threshold) - 0.5))


def main() -> None:
    """Read a checkpoint folder, write another."""
    parser = argparse.ArgumentParser(
        prog="python -m atlas_model.training.dead_zone", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the changed one")
    parser.add_argument(
        "--thresholds", required=True, help="gates below it are shut: one for all layers, or one for each"
    )
    parser.add_argument("--weights-dtype", choices=_DTYPES, default="bfloat16", help="what the weights are rounded to")
    arguments = parser.parse_args()
    if arguments.out.exists() and (not arguments.out.is_dir() or any(arguments.out.iterdir())):
        parser.error(f"--out: {arguments.out} is not a new or empty folder")
    try:
        checkpoint = load_checkpoint(arguments.model)
        thresholds = [float(text) for text in arguments.thresholds.split(",")]
        if len(thresholds) == 1:
            thresholds *= len(checkpoint.model.mixers)
        add_dead_zone(checkpoint.model, thresholds)
    except (CheckpointError, ValueError) as error:
        parser.error(str(error))
    dtype = _DTYPES[arguments.weights_dtype]
    save_checkpoint(arguments.out, checkpoint.model, checkpoint.tokenizer, checkpoint.chat_format, dtype)
    sys.stdout.write(f"written to {arguments.out}; sessions of the model that it was made from do not go on with it\n")


if __name__ == "__main__":
    main()

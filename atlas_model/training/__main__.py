"""`python -m atlas_model.training --corpus DIR --out DIR`: tokenizer and model from a folder of text files alone.

Under `torchrun --nproc-per-node N -m atlas_model.training ...` N processes share the rows of each batch: on a CPU one
thread each is faster than N threads of one process, and steadier beside other work.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path

import torch
import torch.distributed

from atlas_model.checkpoint import load_checkpoint
from atlas_model.config import ConfigError
from atlas_model.text import ChatFormat, TokenizerError, find_tokenizer, load_tokenizer, train_tokenizer
from atlas_model.training.loop import Corpus, Processes, Trainer
from atlas_model.training.prose import MixedProse, Prose
from atlas_model.training.recipe import RECIPES, load_recipe, scaled
from atlas_model.training.synthetic_prose import SyntheticProse
from atlas_model.training.tokenizer_texts import tokenizer_texts

_WEIGHTS_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_AUTOCASTS = {"auto": None, "float32": False, "bfloat16": True}


def main() -> None:
    """Read the arguments, train, and leave a checkpoint folder that serves as it is."""
    parser = argparse.ArgumentParser(prog="python -m atlas_model.training", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--corpus", type=Path, required=True, help="folder of .txt files: prose in which facts are hidden"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint, the metrics and resuming")
    parser.add_argument("--recipe", default="demo", help=f"{' or '.join(RECIPES)}, or a TOML file (default demo)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply every stage's steps (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; under torchrun each process takes its own GPU")
    parser.add_argument("--save-seconds", type=float, default=180.0, help="seconds between two saves")
    parser.add_argument("--weights-dtype", choices=sorted(_WEIGHTS_DTYPES), default="bfloat16", help="on disk")
    parser.add_argument(
        "--compute-dtype",
        choices=list(_AUTOCASTS),
        default="auto",
        help="of matrix products outside the memory; auto: bfloat16 where the CPU has it (default)",
    )
    parser.add_argument("--resume", action="store_true", help="go on from --out's last save")
    parser.add_argument(
        "--start-from", type=Path, metavar="DIR", help="begin with this checkpoint's weights and tokenizer"
    )
    arguments = parser.parse_args()
    if not arguments.corpus.is_dir():
        parser.error(f"--corpus: {arguments.corpus} is not a folder")
    if arguments.scale <= 0:
        parser.error("--scale must be positive")
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            parser.error("--device: this machine has no CUDA device")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    processes = Processes(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")), device)
    if processes.count > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")

    try:
        recipe = RECIPES.get(arguments.recipe) or load_recipe(Path(arguments.recipe))
    except ConfigError as error:
        parser.error(f"--recipe: {error}")
    recipe = scaled(recipe, arguments.scale)
    books = Prose(arguments.corpus)
    start = None if arguments.start_from is None else load_checkpoint(arguments.start_from)
    if arguments.resume:
        try:
            tokenizer = load_tokenizer(find_tokenizer(arguments.out))
        except TokenizerError as error:
            parser.error(f"--resume: {error}")
    elif start is not None:
        tokenizer = start.tokenizer
    else:
        tokenizer = train_tokenizer(tokenizer_texts(random.Random(arguments.seed), books), recipe.model.vocab_size)
    prose = MixedProse(books, SyntheticProse(), recipe.synthetic_prose_share)
    corpus = Corpus(prose, tokenizer, ChatFormat())
    trainer = Trainer(
        recipe,
        corpus,
        arguments.out,
        arguments.seed,
        _WEIGHTS_DTYPES[arguments.weights_dtype],
        processes,
        _AUTOCASTS[arguments.compute_dtype],
        device,
    )
    if arguments.resume and not trainer.resume():
        parser.error(f"--resume: {arguments.out} holds no saved state")
    if start is not None and not arguments.resume:
        try:
            trainer.start_from(start.model)
        except RuntimeError as error:
            parser.error(f"--start-from: {error}")
    if processes.rank == 0:
        _say(f"{trainer.model.num_parameters:,} parameters, {recipe.num_steps:,} steps, from step {trainer.step}")
    trainer.run(arguments.save_seconds, _say)
    if processes.count > 1:
        torch.distributed.destroy_process_group()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

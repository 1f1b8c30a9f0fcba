"""`python -m atlas_model.training --corpus DIR --out DIR`: tokenizer and model from folders of text files alone.

Under `torchrun --nproc-per-node N -m atlas_model.training ...` N processes share the rows of each batch: on a CPU one
thread each is faster than N threads of one process, and steadier beside other work.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import replace
from pathlib import Path

import torch

from atlas_model.checkpoint import CheckpointError, load_checkpoint
from atlas_model.config import ConfigError
from atlas_model.model import AtlasModel
from atlas_model.text import ChatFormat, TokenizerError, find_tokenizer, load_tokenizer, train_tokenizer
from atlas_model.training.corpora import parse_corpus, read_corpora, read_held_out
from atlas_model.training.evaluate import evaluate, held_out_episodes
from atlas_model.training.loop import Corpus, Trainer, Validation
from atlas_model.training.processes import Processes, joined_processes
from atlas_model.training.prose import CorpusError, ProseSource, WeightedProse
from atlas_model.training.recipe import RECIPES, Recipe, load_recipe, scaled
from atlas_model.training.saves import ResumeError, has_save
from atlas_model.training.synthetic_prose import SyntheticProse
from atlas_model.training.tokenizer_texts import tokenizer_texts

_WEIGHTS_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_AUTOCASTS = {"auto": None, "float32": False, "bfloat16": True}


def main() -> None:
    """Read the arguments, train, and leave a checkpoint folder that serves as it is."""
    parser = _parser()
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device: this machine has no CUDA device")
    torch.set_num_threads(arguments.threads)
    try:
        recipe = _recipe(arguments)
        with joined_processes(device) as processes:
            _train(arguments, recipe, processes)
    except _WrongArgumentError as error:
        parser.error(str(error))


class _WrongArgumentError(ValueError):
    """What is wrong with the arguments; the message names the one."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m atlas_model.training",
        description="Train a tokenizer and a model from folders of text files alone; what is left serves as it is.",
        epilog="In N processes: torchrun --nproc-per-node N -m atlas_model.training ... "
        "To draw the metrics: python -m atlas_model.training.plot DIR --out FILE.png",
    )
    what = parser.add_argument_group("what to train")
    what.add_argument(
        "--corpus",
        action="append",
        metavar="[WEIGHT:]DIR",
        help="folder of .txt files: prose in which facts are hidden; may be given again, passages are then drawn by "
        "weight (default 1); in place of the recipe's [[corpora]]",
    )
    what.add_argument("--recipe", metavar="NAME", help=f"{' or '.join(RECIPES)}, or a TOML file (default demo)")
    what.add_argument(
        "--smoke", action="store_true", help="the recipe smoke on generated prose: takes seconds and no corpus"
    )
    what.add_argument(
        "--scale", metavar="FACTOR", type=float, default=1.0, help="multiply every stage's steps (default 1)"
    )
    what.add_argument("--seed", metavar="N", type=int, default=0, help="of weights, text and tokenizer (default 0)")
    what.add_argument(
        "--start-from", type=Path, metavar="DIR", help="begin with this checkpoint's weights and tokenizer"
    )
    out = parser.add_argument_group("what is kept")
    out.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="folder for the checkpoint, the metrics and resuming"
    )
    out.add_argument("--resume", action="store_true", help="go on, to the bit, from --out's last save")
    out.add_argument(
        "--save-seconds", metavar="S", type=float, default=180.0, help="seconds between two saves (default 180)"
    )
    out.add_argument(
        "--log-steps", metavar="N", type=_positive, default=20, help="steps per line of metrics.jsonl (default 20)"
    )
    out.add_argument(
        "--evaluate-steps",
        metavar="N",
        type=_positive,
        help="steps between two measurements of accuracy and perplexity on held-out text (default: none)",
    )
    out.add_argument(
        "--evaluate-episodes", metavar="N", type=_positive, default=8, help="episodes of one measurement (default 8)"
    )
    out.add_argument(
        "--weights-dtype", choices=sorted(_WEIGHTS_DTYPES), default="bfloat16", help="on disk (default bfloat16)"
    )
    where = parser.add_argument_group("how to compute")
    where.add_argument(
        "--device", metavar="NAME", default="cpu", help="cpu or cuda; under torchrun each process takes its own GPU"
    )
    where.add_argument("--threads", metavar="N", type=_positive, default=1, help="threads of torch (default 1)")
    where.add_argument(
        "--compute-dtype",
        choices=list(_AUTOCASTS),
        default="auto",
        help="of matrix products outside the memory; auto: bfloat16 where the device has it (default)",
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _recipe(arguments: argparse.Namespace) -> Recipe:
    """The recipe, with the command line's corpora and scale."""
    if arguments.smoke and (arguments.recipe or arguments.corpus):
        raise _WrongArgumentError("--smoke has a recipe and text of its own: no --recipe and no --corpus beside it")
    if arguments.scale <= 0:
        raise _WrongArgumentError("--scale must be positive")
    name = "smoke" if arguments.smoke else arguments.recipe or "demo"
    try:
        recipe = RECIPES.get(name) or load_recipe(Path(name))
    except ConfigError as error:
        raise _WrongArgumentError(f"--recipe: {error}") from error
    try:
        corpora = tuple(map(parse_corpus, arguments.corpus or ())) or recipe.corpora
    except ConfigError as error:
        raise _WrongArgumentError(f"--corpus: {error}") from error
    if not corpora and not arguments.smoke:
        raise _WrongArgumentError("--corpus is missing: a folder of .txt files, or --smoke, which needs none")
    return scaled(replace(recipe, corpora=corpora), arguments.scale)


def _train(arguments: argparse.Namespace, recipe: Recipe, processes: Processes) -> None:
    out: Path = arguments.out
    try:
        has_run = has_save(out)
        prose = read_corpora(recipe.corpora) if recipe.corpora else SyntheticProse()
        held_out = _held_out(recipe) if arguments.evaluate_steps else None
        start = None if arguments.start_from is None else load_checkpoint(arguments.start_from)
    except (CorpusError, CheckpointError, ResumeError) as error:
        raise _WrongArgumentError(str(error)) from error
    if arguments.resume and not has_run:
        raise _WrongArgumentError(f"--resume: {out} holds no saved state")
    if arguments.resume and start is not None:
        raise _WrongArgumentError("--start-from begins a new run: not together with --resume")
    if has_run and not arguments.resume:
        raise _WrongArgumentError(f"--out: {out} holds a run already: go on with --resume, or name another folder")
    if arguments.resume:
        try:
            tokenizer = load_tokenizer(find_tokenizer(out))
        except TokenizerError as error:
            raise _WrongArgumentError(f"--resume: {error}") from error
    elif start is not None:
        tokenizer = start.tokenizer
    else:
        texts = tokenizer_texts(random.Random(arguments.seed), prose)
        try:
            tokenizer = train_tokenizer(texts, recipe.model.vocab_size)
        except TokenizerError as error:
            size = recipe.model.vocab_size
            raise _WrongArgumentError(f"--corpus: too little text for a vocab_size of {size:,}: {error}") from error
    sources = ((SyntheticProse(), recipe.synthetic_prose_share), (prose, 1 - recipe.synthetic_prose_share))
    try:
        trainer = Trainer(
            recipe,
            Corpus(WeightedProse(sources), tokenizer, ChatFormat()),
            out,
            arguments.seed,
            _WEIGHTS_DTYPES[arguments.weights_dtype],
            processes,
            _AUTOCASTS[arguments.compute_dtype],
            processes.device,
        )
        if arguments.resume:
            trainer.resume()
        elif start is not None:
            trainer.start_from(start.model)
    except RuntimeError as error:
        raise _WrongArgumentError(f"--start-from: {error}") from error
    except ValueError as error:
        raise _WrongArgumentError(str(error)) from error
    if processes.rank == 0:
        _say(f"{trainer.model.num_parameters:,} parameters, {recipe.num_steps:,} steps, from step {trainer.step}")
    validation = None
    if held_out is not None:
        corpus = Corpus(held_out, tokenizer, ChatFormat())
        validation = _validation(recipe, corpus, arguments.evaluate_steps, arguments.evaluate_episodes)
    trainer.run(arguments.save_seconds, _say, arguments.log_steps, validation)
    if processes.rank == 0:
        _say(f"written to {out}, which serves as it is: make serve ATLAS_MODEL={out}")


def _held_out(recipe: Recipe) -> ProseSource:
    return read_held_out(recipe.corpora) if recipe.corpora else SyntheticProse()


def _validation(recipe: Recipe, corpus: Corpus, num_steps: int, num_episodes: int) -> Validation:
    """Documents of about the length that the recipe ends with, the same ones every time."""
    num_tokens = max(64, recipe.stages[-1].episodes.num_tokens // 64 * 64)

    def measure(model: AtlasModel) -> dict[str, float]:
        result = evaluate(model, corpus, held_out_episodes(num_tokens), num_episodes, seed=1_000)
        return {"held_out_accuracy": result.scores.accuracy, "held_out_perplexity": result.prose_perplexity}

    return Validation(num_steps, measure)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

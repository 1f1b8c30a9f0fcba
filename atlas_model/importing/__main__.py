"""`python -m atlas_model.importing CHECKPOINT.pt --out DIR`: a model of ours from a file of the Atlas-MAG layout.

Says what of it has a counterpart here and what has none. Where the result would not compute what the source does, it
is made only with --as-initialisation. Exit status: 0 done, 1 refused, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from atlas_model.checkpoint import save_checkpoint
from atlas_model.importing.conversion import Conversion, convert
from atlas_model.importing.layout import LayoutError, Source, read_source
from atlas_model.importing.report import table, verdict, write_report
from atlas_model.text import ChatFormat, Tokenizer, TokenizerError, load_tokenizer


def main() -> None:
    """Read the arguments, convert, and leave a checkpoint folder with its report; or say why not."""
    parser = argparse.ArgumentParser(prog="python -m atlas_model.importing", description=__doc__.splitlines()[0])
    parser.add_argument(
        "checkpoint", type=Path, help="torch.save of a dict with 'model_state_dict'; nothing in it runs"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint, new or empty")
    parser.add_argument("--tokenizer", type=Path, help="its tokenizer.json or tokenizer.model, with our special tokens")
    parser.add_argument("--seed", type=int, default=0, help="of the weights that have no source")
    parser.add_argument(
        "--as-initialisation",
        action="store_true",
        help="take a result that is not the source's model but a starting point for training",
    )
    arguments = parser.parse_args()
    if arguments.out.exists() and (not arguments.out.is_dir() or any(arguments.out.iterdir())):
        parser.error(f"--out: {arguments.out} is not a new or empty folder")
    try:
        source, conversion, tokenizer = _convert(arguments.checkpoint, arguments.tokenizer, arguments.seed)
    except (LayoutError, TokenizerError, OSError) as error:
        sys.exit(f"refused: {error}")
    sys.stdout.write(f"{table(conversion)}\n\n{verdict(conversion)}\n")
    if conversion.differences and not arguments.as_initialisation:
        sys.exit("refused: the result would not be this model; --as-initialisation makes it a starting point")
    save_checkpoint(arguments.out, conversion.model, tokenizer, ChatFormat())
    write_report(arguments.out, arguments.checkpoint.name, source, conversion)
    loads = "" if tokenizer else "; it loads when a tokenizer.json or tokenizer.model is put there"
    sys.stdout.write(f"written to {arguments.out}{loads}\n")


def _convert(checkpoint: Path, tokenizer_path: Path | None, seed: int) -> tuple[Source, Conversion, Tokenizer | None]:
    tokenizer = None if tokenizer_path is None else load_tokenizer(tokenizer_path)
    source = read_source(checkpoint)
    torch.manual_seed(seed)
    return source, convert(source, None if tokenizer is None else tokenizer.vocab_size), tokenizer


if __name__ == "__main__":
    main()

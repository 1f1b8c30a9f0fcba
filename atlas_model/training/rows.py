"""The ablation: rows that differ in one thing, trained one by one at an equal budget, and what each recalls.

`python -m atlas_model.training.rows --corpus DIR --out FILE.jsonl` trains the named rows that the file does not have
yet and appends one JSON line each, so a table fills over time. Every row sees the same episodes in the same order;
recall and perplexity are measured on books that no row has read.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from atlas_model.config import AtlasConfig, AttentionConfig, MemoryConfig
from atlas_model.sizes import num_parameters
from atlas_model.text import ChatFormat, train_tokenizer
from atlas_model.training.episode_plan import EpisodeConfig
from atlas_model.training.evaluate import evaluate
from atlas_model.training.loop import Corpus, Trainer
from atlas_model.training.prose import CorpusError, Prose
from atlas_model.training.recipe import Recipe, Stage
from atlas_model.training.tasks import Kind
from atlas_model.training.tokenizer_texts import tokenizer_texts

_VOCAB_SIZE = 3000
_TESTS = ((128, 4), (512, 4), (512, 12))
"""Tokens, and facts that are told and asked in them."""
_KINDS = (Kind.LOCATION, Kind.ATTRIBUTE)
_BASE_MEMORY = MemoryConfig(
    num_heads=2,
    key_width=64,
    value_width=64,
    memory_chunk_size=16,
    feature_degree=2,
    feature_width=16,
    feature_norm="unit",
    retention="none",
    max_momentum_decay=0.0,
    read_norm_eps=1e-3,
)
_BASE = AtlasConfig(
    vocab_size=_VOCAB_SIZE,
    width=128,
    num_layers=2,
    feed_forward_width=352,
    layout="mag",
    memory=_BASE_MEMORY,
    attention=AttentionConfig(num_heads=2, window=16),
)


def _with_memory(**changes: object) -> AtlasConfig:
    return replace(_BASE, memory=replace(_BASE_MEMORY, **changes))  # type: ignore[arg-type]


def _as_large_as_base(config: AtlasConfig) -> AtlasConfig:
    """The same with the feed-forward width that makes its parameters as many as the base's."""
    missing = num_parameters(_BASE) - num_parameters(config)
    wider = round(missing / (3 * config.width * config.num_layers))
    return replace(config, feed_forward_width=config.feed_forward_width + wider)


ROWS = {
    "base": _BASE,
    "read at chunk start": _with_memory(read_granularity="chunk"),
    "omega window 8": _with_memory(omega_window=8),
    "no features": _with_memory(feature_degree=1),
    "degree 3": _with_memory(feature_degree=3),
    "momentum": _with_memory(max_momentum_decay=0.9),
    "retention": _with_memory(retention="decay"),
    "muon per chunk": _with_memory(rule="muon", read_granularity="chunk", step="free"),
    "mlp": _with_memory(network="mlp"),
    "gated mlp": _with_memory(network="gated_mlp"),
    "lmm": replace(_BASE, layout="lmm", attention=None),
    "mal": replace(_BASE, layout="mal"),
    "mac": replace(_BASE, layout="mac", attention=AttentionConfig(num_heads=2, window=16, num_persistent=4)),
    "window alone": _as_large_as_base(replace(_BASE, layout="swa")),
    "transformer": _as_large_as_base(replace(_BASE, layout="swa", attention=AttentionConfig(num_heads=2, window=512))),
}
"""The base has a matrix memory, gd, token reads, omega window 1, features of degree 2 and the layout `mag` with a
window of 16; the others change what their name says. `window alone` has that attention and no memory, `transformer` an
attention that sees all of every text here; a wider feed-forward gives both the base's number of parameters."""


def row_recipe(model: AtlasConfig, num_tokens: int) -> Recipe:
    """num_tokens of dense episodes of 128 tokens, 16 a step."""
    episodes = EpisodeConfig(num_tokens=128, num_facts=(2, 5), num_questions=(3, 5), kinds=_KINDS)
    stage = Stage(max(1, num_tokens // (16 * 128)), 16, 128, episodes, write_penalty=0.02)
    return Recipe(model, (stage,), num_warmup_steps=50, max_lr=1.5e-3, decay_share=0.5)


def train_row(name: str, num_tokens: int, seed: int, corpus_directory: Path) -> dict[str, object]:
    """Train one row; measure it on held-out episodes. Raises CorpusError for a bad folder."""
    recipe = row_recipe(ROWS[name], num_tokens)
    prose, held_out = Prose(corpus_directory), Prose(corpus_directory, validation=True)
    tokenizer = train_tokenizer(tokenizer_texts(random.Random(0), prose), _VOCAB_SIZE)
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(recipe, Corpus(prose, tokenizer, ChatFormat()), Path(directory), seed, torch.float32)
        started = time.monotonic()
        losses = [trainer.train_step()["loss"] for _ in range(recipe.num_steps)]
        seconds = time.monotonic() - started
    trainer.model.eval()
    line: dict[str, object] = {
        "row": name,
        "seed": seed,
        "training_tokens": trainer.num_tokens,
        "parameters": trainer.model.num_parameters,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(trainer.num_tokens / seconds),
        "loss": round(sum(losses[-50:]) / len(losses[-50:]), 4),
    }
    held_out_corpus = Corpus(held_out, tokenizer, ChatFormat())
    for length, num_facts in _TESTS:
        episodes = replace(
            recipe.stages[0].episodes,
            num_tokens=length,
            num_facts=(num_facts, num_facts),
            num_questions=(num_facts, num_facts),
            question_placement="end",
            max_num_rounds=1,
            turn_fact_share=0.0,
        )
        result = evaluate(trainer.model, held_out_corpus, episodes, num_episodes=240 // num_facts, seed=1_000)
        name = f"{num_facts}_facts_in_{length}"
        line[f"accuracy_{name}"] = round(result.scores.accuracy, 4)
        line[f"num_questions_{name}"] = sum(result.scores.num_asked.values())
        line[f"perplexity_{name}"] = round(result.prose_perplexity, 2)
    return line


def main() -> None:
    """Train the rows that are missing."""
    parser = argparse.ArgumentParser(prog="python -m atlas_model.training.rows", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of .txt books, two of them held out")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; rows that it has are not trained again")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="training tokens a row")
    parser.add_argument("--rows", default=",".join(ROWS), help="names, separated by commas")
    parser.add_argument("--seeds", default="0", help="each row is trained once with each; separated by commas")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = [name.strip() for name in arguments.rows.split(",")]
    for name in names:
        if name not in ROWS:
            parser.error(f"--rows: {name!r} is none of {', '.join(map(repr, ROWS))}")
    if not all(seed.strip().isdecimal() for seed in arguments.seeds.split(",")):
        parser.error(f"--seeds: {arguments.seeds!r} is no list of whole numbers")
    have = set()
    if arguments.out.is_file():
        lines = [json.loads(line) for line in arguments.out.read_text(encoding="utf-8").splitlines()]
        have = {(line["row"], line["seed"], line["budget"]) for line in lines}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in map(int, arguments.seeds.split(",")):
        for name in names:
            if (name, seed, arguments.tokens) in have:
                continue
            try:
                measured = train_row(name, arguments.tokens, seed, arguments.corpus)
            except CorpusError as error:
                parser.error(f"--corpus: {error}")
            line = {"budget": arguments.tokens, **measured}
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()

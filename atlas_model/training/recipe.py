"""Recipes: a model's configuration, the stages it is trained in and the text it is trained on, as values.

A stage fixes the length of the segments that are differentiated through, the episodes they are cut from and how hard
writing prose into the memory is punished. Episodes longer than a segment carry their state across segments, detached.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from atlas_model.config import AtlasConfig, AttentionConfig, Config, ConfigError, MemoryConfig
from atlas_model.presets import DEMO, PRESETS
from atlas_model.training.corpora import CorpusConfig
from atlas_model.training.episode_plan import EpisodeConfig


@dataclass(frozen=True, slots=True)
class Stage(Config):
    """num_steps optimiser steps on batch_size rows of segment_num_tokens tokens.

    write_penalty: weight of the mean over all tokens of token_gate, counted up to a half, that is added to the loss: a
    gate that can shut does not learn to by itself.
    lr_ratio: of this stage's learning rate to the recipe's.
    gate_lr_ratio: of the gates' learning rate to that of the others: a gate that moves fast forgets what it selected.
    gradient_accumulation_steps: parts that the rows are read in, one after the other, for want of memory; the step is
    that of the undivided rows.
    memory_chunk_sizes: of this stage, one for each layer or one for all, None for the model's own. Large chunks train
    fast; the last stage must have the model's own (the two stages of TNT, arXiv 2511.07343).
    """

    num_steps: int
    batch_size: int
    segment_num_tokens: int
    episodes: EpisodeConfig
    write_penalty: float
    lr_ratio: float = 1.0
    gate_lr_ratio: float = 1.0
    gradient_accumulation_steps: int = 1
    memory_chunk_sizes: tuple[int, ...] | None = None

    def _check(self) -> None:
        for name in ("num_steps", "batch_size", "segment_num_tokens", "gradient_accumulation_steps"):
            self._require(getattr(self, name) >= 1, f"{name} must be at least 1")
        self._require(
            self.batch_size % self.gradient_accumulation_steps == 0,
            f"{self.gradient_accumulation_steps} gradient_accumulation_steps cannot share {self.batch_size} rows",
        )


@dataclass(frozen=True, slots=True)
class Recipe(Config):
    """text_share: how much of the text between the answers is scored, at random.

    corpora: the folders of text that facts hide in, beside a share of passages of generated prose.
    dense_lr_ratio: how much larger the learning rate of the blocks' dense matrices, trained by Muon, is.
    max_lr is reached after num_warmup_steps, held, and brought to 0 linearly over the last `decay_share` of all steps.
    """

    model: AtlasConfig
    stages: tuple[Stage, ...]
    synthetic_prose_share: float = 0.1
    text_share: float = 0.3
    max_lr: float = 1.5e-3
    dense_lr_ratio: float = 1.5
    num_warmup_steps: int = 100
    decay_share: float = 0.25
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    corpora: tuple[CorpusConfig, ...] = ()

    def _check(self) -> None:
        self._require(len(self.stages) > 0, "stages must not be empty")
        self._require(0 < self.text_share <= 1, "text_share must be in (0, 1]")
        self._require(0 <= self.synthetic_prose_share <= 1, "synthetic_prose_share must be in [0, 1]")
        self._require(0 < self.decay_share <= 1, "decay_share must be in (0, 1]")
        self._require(self.num_warmup_steps >= 1, "num_warmup_steps must be at least 1")
        for index in range(len(self.stages)):
            try:
                config = self.stage_model(index)
            except ConfigError as error:
                raise ConfigError(f"Recipe: stages[{index}].memory_chunk_sizes: {error}") from error
        self._require(
            config == self.model, "the last stage's memory_chunk_sizes must be the model's own: it is served with those"
        )

    @property
    def num_steps(self) -> int:
        return sum(stage.num_steps for stage in self.stages)

    def stage_model(self, index: int) -> AtlasConfig:
        """The configuration that stage 0, 1, ... trains at: the model's but for its chunk sizes."""
        model, sizes = self.model, self.stages[index].memory_chunk_sizes
        if sizes is None:
            return model
        if len(sizes) == 1:
            sizes *= model.num_layers
        own = tuple(model.layer_memory(layer).memory_chunk_size for layer in range(model.num_layers))
        return model if sizes == own else replace(model, memory_chunk_sizes=sizes)

    def lr(self, step: int) -> float:
        """Learning rate of step 0, 1, ..."""
        warm = min(1.0, (step + 1) / self.num_warmup_steps)
        remaining = (self.num_steps - step) / (self.decay_share * self.num_steps)
        return self.stage_at(step)[1].lr_ratio * self.max_lr * min(warm, remaining, 1.0)

    def stage_at(self, step: int) -> tuple[int, Stage]:
        """The stage that step 0, 1, ... belongs to, and its index."""
        for index, stage in enumerate(self.stages):
            if step < stage.num_steps:
                return index, stage
            step -= stage.num_steps
        raise ValueError("the recipe has no such step")


_SHORT = Stage(
    num_steps=450,
    batch_size=16,
    segment_num_tokens=256,
    episodes=EpisodeConfig(num_tokens=256, num_facts=(4, 9), num_questions=(6, 10), max_num_kinds=2),
    write_penalty=0.0,
)
_DENSE = Stage(
    num_steps=450,
    batch_size=4,
    segment_num_tokens=1024,
    episodes=EpisodeConfig(
        num_tokens=4096, min_num_tokens=1024, num_facts=(16, 44), num_questions=(30, 90), text_weight=0.05
    ),
    write_penalty=2.0,
    lr_ratio=0.7,
    gate_lr_ratio=0.3,
)
_DEMO_STAGES = (
    _SHORT,
    replace(
        _SHORT,
        num_steps=150,
        batch_size=8,
        segment_num_tokens=512,
        episodes=EpisodeConfig(num_tokens=512, num_facts=(6, 16), num_questions=(10, 18)),
        write_penalty=0.3,
    ),
    replace(_DENSE, num_steps=250, write_penalty=1.0),
    _DENSE,
    replace(
        _DENSE,
        num_steps=350,
        episodes=replace(_DENSE.episodes, num_tokens=8192, num_questions=(30, 120)),
        write_penalty=4.0,
    ),
)

_SMOKE_MODEL = AtlasConfig(
    vocab_size=2500,
    width=32,
    num_layers=2,
    feed_forward_width=64,
    layout="mag",
    memory=MemoryConfig(num_heads=2, key_width=16, value_width=16, memory_chunk_size=16, max_momentum_decay=0.3),
    attention=AttentionConfig(num_heads=2, window=16),
)

_SMOKE_STAGES = (
    Stage(
        num_steps=12,
        batch_size=4,
        segment_num_tokens=64,
        episodes=EpisodeConfig(num_tokens=64, num_facts=(1, 2), num_questions=(1, 2)),
        write_penalty=0.05,
        memory_chunk_sizes=(32,),
    ),
    Stage(
        num_steps=8,
        batch_size=4,
        segment_num_tokens=64,
        episodes=EpisodeConfig(num_tokens=192, num_facts=(1, 4), num_questions=(1, 4)),
        write_penalty=0.2,
        gradient_accumulation_steps=2,
    ),
)

RECIPES: Mapping[str, Recipe] = {
    "demo": Recipe(replace(DEMO, conv_width=12), _DEMO_STAGES),
    "smoke": Recipe(_SMOKE_MODEL, _SMOKE_STAGES, num_warmup_steps=4),
}
"""`demo` is the shipped model's successor, with convolutions that reach back to a code's name from its third digit;
`smoke` shows in seconds that the whole path works, and learns next to nothing."""


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from a TOML file: the fields of `Recipe`, [model], [[stages]] and [[corpora]] with theirs.

    `preset = "NAME"` stands for a [model]; a corpus' directory is relative to the file. Raises ConfigError, which names
    the key that is wrong.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if "preset" in values:
        name = values.pop("preset")
        if "model" in values or name not in PRESETS:
            raise ConfigError(f"{path}: preset is one of {', '.join(map(repr, PRESETS))}, in place of a [model]")
        values["model"] = PRESETS[name].to_dict()
    try:
        recipe = Recipe.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    corpora = (replace(corpus, directory=str(path.parent / corpus.directory)) for corpus in recipe.corpora)
    return replace(recipe, corpora=tuple(corpora))


def scaled(recipe: Recipe, share: float) -> Recipe:
    """The same recipe with every stage's steps multiplied: for trials at a smaller budget."""
    stages = tuple(replace(stage, num_steps=max(1, round(stage.num_steps * share))) for stage in recipe.stages)
    warmup = max(1, round(recipe.num_warmup_steps * min(1.0, share)))
    return replace(recipe, stages=stages, num_warmup_steps=warmup)

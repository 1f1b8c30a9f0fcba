"""The training loop: differentiates through the inner loop, carries states over long episodes, resumes where it was.

Promises: a run is a function of recipe, corpus and seed up to floating-point order, whatever the number of processes
and of parts that its batches are read in; a resumed run ends with the very bits of one that went on, in as many
processes and threads. Leaves the loss to `step`, the tasks to `data`, the numbers to `recipe`, what resuming needs on
disk to `saves`, files of the finished model to `checkpoint`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atlas_model.config import AtlasConfig
from atlas_model.model import AtlasModel
from atlas_model.state import State
from atlas_model.text import ChatFormat, Tokenizer
from atlas_model.training.data import Batch, EpisodeStream
from atlas_model.training.metrics import Line, append_metrics, averaged, drop_metrics_after
from atlas_model.training.optimizers import has_fast_bfloat16, make_optimizers
from atlas_model.training.processes import Processes
from atlas_model.training.prose import ProseSource
from atlas_model.training.recipe import Recipe, Stage
from atlas_model.training.saves import ResumeError, Rows, difference, has_save, read_save, write_checkpoint, write_save
from atlas_model.training.step import SegmentLoss, backward, metrics


@dataclass(frozen=True, slots=True)
class Corpus:
    """What a model is trained on: prose to hide facts in, and the tokenizer and chat format that frame it."""

    prose: ProseSource
    tokenizer: Tokenizer
    chat_format: ChatFormat


@dataclass(frozen=True, slots=True)
class Validation:
    """What is measured every `num_steps` steps, in one process, and added to the metrics."""

    num_steps: int
    measure: Callable[[AtlasModel], Line]


class Trainer:
    """One run: model, optimiser, stream of episodes and the state its rows carry. `directory` holds all its files."""

    def __init__(
        self,
        recipe: Recipe,
        corpus: Corpus,
        directory: Path,
        seed: int,
        weights_dtype: torch.dtype,
        processes: Processes | None = None,
        autocasts: bool | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """autocasts: whether matrix products outside the memory are bfloat16's; None: where that is the faster.

        Raises ValueError when the rows of a stage's parts do not split evenly over the processes.
        """
        self._processes = processes or Processes()
        for stage in recipe.stages:
            part_num_rows = stage.batch_size // stage.gradient_accumulation_steps
            if part_num_rows % self._processes.count:
                raise ValueError(f"{self._processes.count} processes cannot share {part_num_rows} rows")
        torch.manual_seed(seed)
        self.recipe = recipe
        self._device = torch.device(device)
        self.model = AtlasModel(recipe.stage_model(0)).to(self._device)
        self.step = 0
        self.num_tokens = 0
        self.seconds = 0.0
        self._corpus = corpus
        self._directory = directory
        self._seed = seed
        self._weights_dtype = weights_dtype
        self._autocasts = has_fast_bfloat16(self._device) if autocasts is None else autocasts
        self._optimizers = make_optimizers(self.model, recipe)
        self._segment_loss = SegmentLoss(self.model, self._autocasts)
        self._loss = self._processes.joined(self._segment_loss)
        self._window: list[Line] = []
        self._stage_index = -1
        self._stream: EpisodeStream | None = None
        self._state: State | None = None
        directory.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        save_seconds: float,
        report: Callable[[str], None],
        log_steps: int = 20,
        validation: Validation | None = None,
    ) -> None:
        """Train to the recipe's end, saving every `save_seconds` and at the end; one line of metrics per log_steps."""
        if self._processes.rank == 0:
            drop_metrics_after(self._directory, self.step)
        saved_at = time.monotonic()
        while self.step < self.recipe.num_steps:
            started = time.monotonic()
            self._window.append(self.train_step())
            self.seconds += time.monotonic() - started
            if self.step % log_steps == 0:
                self._log({"lr": self.recipe.lr(self.step - 1)} | averaged(self._window), report)
                self._window = []
            if validation is not None and self.step % validation.num_steps == 0 and self._processes.rank == 0:
                self._log(validation.measure(self.model), report)
            if self._processes.agree(time.monotonic() - saved_at > save_seconds):
                self.save()
                saved_at = time.monotonic()
        self.save()

    def train_step(self) -> Line:
        """One optimiser step on the next batch; the metrics of that batch, over all processes' rows."""
        index, stage = self.recipe.stage_at(self.step)
        if index != self._stage_index:
            self._enter_stage(index)
        assert self._stream is not None
        batch = self._stream.next_batch().to(self._device)
        self.model.zero_grad(set_to_none=True)
        self._state, sums = backward(
            self._loss,
            self._processes,
            batch,
            self._scored(batch, stage),
            self._state,
            stage.gradient_accumulation_steps,
            stage.write_penalty,
        )
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
        if bool(norm.isfinite()):
            self._move_weights(stage)
        self.step += 1
        self.num_tokens += stage.batch_size * stage.segment_num_tokens
        return metrics(sums) | {"grad_norm": float(norm)}

    def save(self) -> None:
        """Write the checkpoint folder and, beside it, what resuming needs.

        Before the last stage the checkpoint has the chunk sizes that it was trained at so far.
        """
        assert self._stream is not None
        assert self._state is not None
        if self._processes.rank == 0:
            corpus = self._corpus
            write_checkpoint(self._directory, self.model, corpus.tokenizer, corpus.chat_format, self._weights_dtype)
        shared = {
            "run": json.dumps(self._run()),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "window": self._window,
            "stage_index": self._stage_index,
            "step": self.step,
            "num_tokens": self.num_tokens,
            "seconds": self.seconds,
        }
        rows: Rows = {"stream": self._stream.state_dict(), "carried": self._state.named_tensors()}
        write_save(self._directory, self._processes, shared, rows)

    def start_from(self, model: AtlasModel) -> None:
        """Begin with another model's weights. Raises RuntimeError when their shapes are not the recipe's."""
        self.model.load_state_dict(model.state_dict())

    def resume(self) -> bool:
        """Go on from the directory's saved step; False when there is none. Raises ResumeError when it is another run.

        The corpora must still hold the same text, wherever they lie now; this is not checked.
        """
        if not has_save(self._directory):
            return False
        saved, rows = read_save(self._directory)
        if (found := difference(json.loads(saved["run"]), self._run(), "run")) is not None:
            raise ResumeError(f"{self._directory} holds another run: {found}")
        self.step, self.num_tokens, self.seconds = saved["step"], saved["num_tokens"], saved["seconds"]
        self._window = saved["window"]
        self._enter_stage(saved["stage_index"])
        self.model.load_state_dict(saved["model"])
        for optimizer, optimizer_state in zip(self._optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        assert self._stream is not None
        mine = slice(self._first_row, self._first_row + self._num_rows)
        self._stream.load_state_dict({name: values[mine] for name, values in rows["stream"].items()})
        carried = {name: tensor[mine].clone() for name, tensor in rows["carried"].items()}
        self._state = State.from_named_tensors(self.model.config, carried).to(self._device)
        return True

    def _run(self) -> dict[str, Any]:
        """What makes this run another one than those of other recipes, seeds, tokenizers and precisions."""
        recipe = json.loads(json.dumps(self.recipe.to_dict()))
        for corpus in recipe["corpora"]:
            del corpus["directory"]
        return {
            "recipe": recipe,
            "seed": self._seed,
            "tokenizer": hashlib.sha256(self._corpus.tokenizer.file_bytes).hexdigest(),
            "autocasts": self._autocasts,
        }

    @property
    def _num_rows(self) -> int:
        """Rows of this process in the stage it is in."""
        return self.recipe.stages[self._stage_index].batch_size // self._processes.count

    @property
    def _first_row(self) -> int:
        return self._processes.rank * self._num_rows

    def _enter_stage(self, index: int) -> None:
        stage = self.recipe.stages[index]
        self._stage_index = index
        self._state = None
        self._change_config(self.recipe.stage_model(index))
        self._stream = EpisodeStream(
            stage.episodes,
            self._corpus.prose,
            self._corpus.tokenizer,
            self._corpus.chat_format,
            batch_size=self._num_rows,
            segment_num_tokens=stage.segment_num_tokens,
            seed=1_000_000 * self._seed + index,
            first_row=self._first_row,
        )

    def _change_config(self, config: AtlasConfig) -> None:
        """Go on with a model of other chunk sizes and the very same parameters, which the optimisers know."""
        if config == self.model.config:
            return
        model = AtlasModel(config).to(self._device)
        model.load_state_dict(self.model.state_dict(keep_vars=True), assign=True)
        self.model = self._segment_loss.model = model

    def _scored(self, batch: Batch, stage: Stage) -> Tensor:
        """Weights of the targets, [B, T]: answers as they are, and of the text a random part, raised to match.

        Over a small model the output layer of all tokens would cost as much as a block. The choice is a function of
        seed and step, so that a resumed run and any number of processes make the same.
        """
        share = self.recipe.text_share
        generator = torch.Generator().manual_seed(self._seed * 10_000_019 + self.step)
        drawn = torch.rand((stage.batch_size, stage.segment_num_tokens), generator=generator) < share
        drawn = drawn[self._first_row : self._first_row + self._num_rows].to(self._device)
        text_weights = batch.target_weights / share * drawn
        return torch.where(batch.target_weights >= 1.0, batch.target_weights, text_weights)

    def _move_weights(self, stage: Stage) -> None:
        lr = self.recipe.lr(self.step)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_ratio"] * (stage.gate_lr_ratio if group["has_gates"] else 1.0)
            optimizer.step()

    def _log(self, line: Line, report: Callable[[str], None]) -> None:
        if self._processes.rank != 0:
            return
        line = {"step": self.step, "tokens": self.num_tokens, "seconds": round(self.seconds, 1), **line}
        append_metrics(self._directory, line)
        report("  ".join(f"{name} {value:.4g}" for name, value in line.items()))

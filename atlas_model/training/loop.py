"""The training loop: differentiates through the inner loop, carries states over long episodes, resumes where it was.

Promises: a run is a function of recipe, corpus, seed and number of processes up to floating-point order; a resumed
run goes on from the last saved step. Several processes share each batch's rows and average their gradients. Leaves
the tasks to `data`, the numbers to `recipe`, files of the finished model to `checkpoint`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.nn.functional import cross_entropy

from atlas_model.checkpoint import save_checkpoint
from atlas_model.gates import Gates
from atlas_model.inspection import memory_rms
from atlas_model.model import AtlasModel
from atlas_model.state import State
from atlas_model.text import ChatFormat, Tokenizer
from atlas_model.training.data import Batch, EpisodeStream, score_answers
from atlas_model.training.optimizers import has_fast_bfloat16, make_optimizers
from atlas_model.training.prose import ProseSource
from atlas_model.training.recipe import Recipe

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class Corpus:
    """What a model is trained on: prose to hide facts in, and the tokenizer and chat format that frame it."""

    prose: ProseSource
    tokenizer: Tokenizer
    chat_format: ChatFormat


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that train together. All start from the same seed and see different rows."""

    rank: int = 0
    count: int = 1
    device: torch.device | str = "cpu"

    def agree(self, wanted: bool) -> bool:
        """Whether any process wants it; the same answer in all of them."""
        if self.count == 1:
            return wanted
        votes = torch.tensor(int(wanted), device=self.device)
        torch.distributed.all_reduce(votes)
        return bool(votes)

    def average(self, gradients: list[Tensor]) -> None:
        """Replace each process's gradients by their mean, in place."""
        if self.count == 1:
            return
        joined = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(joined)
        joined /= self.count
        for gradient, mean in zip(gradients, joined.split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


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

        Raises ValueError when a stage's rows do not split evenly over the processes.
        """
        self._processes = processes or Processes()
        for stage in recipe.stages:
            if stage.batch_size % self._processes.count:
                raise ValueError(f"{self._processes.count} processes cannot share {stage.batch_size} rows")
        torch.manual_seed(seed)
        self.recipe = recipe
        self._device = torch.device(device)
        self.model = AtlasModel(recipe.model).to(self._device)
        self.step = 0
        self.num_tokens = 0
        self.seconds = 0.0
        self._corpus = corpus
        self._directory = directory
        self._seed = seed
        self._weights_dtype = weights_dtype
        self._autocasts = has_fast_bfloat16(self._device) if autocasts is None else autocasts
        self._optimizers = make_optimizers(self.model, recipe)
        self._stage_index = -1
        self._stream: EpisodeStream | None = None
        self._state: State | None = None
        directory.mkdir(parents=True, exist_ok=True)

    def run(self, save_seconds: float, report: Callable[[str], None], log_steps: int = 20) -> None:
        """Train to the recipe's end, saving every `save_seconds` and at the end; one line of metrics per log_steps."""
        saved_at = time.monotonic()
        window: list[dict[str, float]] = []
        while self.step < self.recipe.num_steps:
            started = time.monotonic()
            window.append(self.train_step())
            self.seconds += time.monotonic() - started
            if self.step % log_steps == 0:
                self._log(window, report)
                window = []
            if self._processes.agree(time.monotonic() - saved_at > save_seconds):
                self.save()
                saved_at = time.monotonic()
        self.save()

    def train_step(self) -> dict[str, float]:
        """One optimiser step on the next batch; the metrics of that batch."""
        index, stage = self.recipe.stage_at(self.step)
        if index != self._stage_index:
            self._enter_stage(index)
        assert self._stream is not None
        batch = self._stream.next_batch().to(self._device)
        recipe = self.recipe
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                gate_lr_ratio = stage.gate_lr_ratio if group["has_gates"] else 1.0
                group["lr"] = gate_lr_ratio * group["lr_ratio"] * recipe.lr(self.step)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._autocasts):
            hidden, state, gates = self.model.hidden(batch.token_ids, self._state_before(batch))
            text_loss = _weighted_loss(self.model, hidden, batch, self._scored(batch))
        open_share = _open_share(gates)
        loss = text_loss + stage.write_penalty * open_share
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        self._processes.average([p.grad for p in self.model.parameters() if p.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.max_grad_norm)
        if bool(norm.isfinite()):
            for optimizer in self._optimizers:
                optimizer.step()
        self._state = state.detach()
        self.step += 1
        self.num_tokens += batch.token_ids.numel() * self._processes.count
        with torch.no_grad():
            return self._metrics(batch, hidden, gates, state) | {
                "loss": float(text_loss),
                "written": float(open_share),
                "grad_norm": float(norm),
            }

    def _scored(self, batch: Batch) -> Tensor:
        """Weights of the targets, [B, T]: answers as they are, and of the text a random part, raised to match.

        Over a small model the output layer of all tokens would cost as much as a block. The choice is a function of
        seed, process and step, so that a resumed run makes the same.
        """
        share = self.recipe.text_share
        seed = (self._seed * self._processes.count + self._processes.rank) * 10_000_019 + self.step
        drawn = torch.rand(batch.targets.shape, generator=torch.Generator().manual_seed(seed)) < share
        drawn = drawn.to(self._device)
        text_weights = batch.target_weights / share * drawn
        return torch.where(batch.target_weights >= 1.0, batch.target_weights, text_weights)

    def save(self) -> None:
        """Write the checkpoint folder and, beside it, what resuming needs."""
        if self._processes.rank == 0:
            save_checkpoint(
                self._directory,
                self.model,
                self._corpus.tokenizer,
                self._corpus.chat_format,
                self._weights_dtype,
            )
        assert self._stream is not None
        training_state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "stream": self._stream.state_dict(),
            "carried": None if self._state is None else self._state.named_tensors(),
            "stage_index": self._stage_index,
            "step": self.step,
            "num_tokens": self.num_tokens,
            "seconds": self.seconds,
        }
        path = self._training_state_path
        torch.save(training_state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def start_from(self, model: AtlasModel) -> None:
        """Begin with another model's weights. Raises RuntimeError when their shapes are not the recipe's."""
        self.model.load_state_dict(model.state_dict())

    def resume(self) -> bool:
        """Go on from the directory's saved state; False when there is none."""
        path = self._training_state_path
        if not path.is_file():
            return False
        saved: dict[str, Any] = torch.load(path, weights_only=True, map_location=self._device)
        self.step, self.num_tokens, self.seconds = saved["step"], saved["num_tokens"], saved["seconds"]
        self._enter_stage(saved["stage_index"])
        self.model.load_state_dict(saved["model"])
        for optimizer, optimizer_state in zip(self._optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        assert self._stream is not None
        self._stream.load_state_dict(saved["stream"])
        if saved["carried"] is not None:
            self._state = State.from_named_tensors(self.model.config, saved["carried"])
        return True

    @property
    def _training_state_path(self) -> Path:
        return self._directory / f"training_state.{self._processes.rank}.pt"

    def _enter_stage(self, index: int) -> None:
        stage = self.recipe.stages[index]
        self._stage_index = index
        self._state = None
        self._stream = EpisodeStream(
            stage.episodes,
            self._corpus.prose,
            self._corpus.tokenizer,
            self._corpus.chat_format,
            batch_size=stage.batch_size // self._processes.count,
            segment_num_tokens=stage.segment_num_tokens,
            seed=1_000_000 * self._seed + 1_000 * self._processes.rank + index,
        )

    def _state_before(self, batch: Batch) -> State | None:
        """The carried state, with the rows that begin an episode at the learned start."""
        if self._state is None or bool(batch.starts_episode.all()):
            return None
        return self._state.replace_rows(batch.starts_episode, self.model.initial_state(len(batch.token_ids)))

    def _metrics(self, batch: Batch, hidden: Tensor, gates: tuple[Gates, ...], state: State) -> dict[str, float]:
        is_answer = batch.answer_index >= 0
        predicted = torch.full_like(batch.targets, -1)
        predicted[is_answer] = self.model.logits(hidden[is_answer]).argmax(-1)
        scores = score_answers(batch, predicted)
        prose = batch.prose_mask[:, None].float()
        is_open = torch.stack([(each.token_gate * each.inner_lr > 0).float() for each in gates] or [0.0 * prose])
        prose_share = prose.mean().clamp(min=1e-9)
        fact_share = (1 - prose).mean().clamp(min=1e-9)
        return {
            "num_asked": float(sum(scores.num_asked.values())),
            "num_right": float(sum(scores.num_right.values())),
            "open_on_prose": float((is_open * prose).mean() / prose_share),
            "open_elsewhere": float((is_open * (1 - prose)).mean() / fact_share),
            "memory_rms": memory_rms(state),
        }

    def _log(self, window: list[dict[str, float]], report: Callable[[str], None]) -> None:
        asked, right = (sum(each[name] for each in window) for name in ("num_asked", "num_right"))
        line: dict[str, float] = {
            "step": self.step,
            "tokens": self.num_tokens,
            "seconds": round(self.seconds, 1),
            "lr": self.recipe.lr(self.step - 1),
            "accuracy": right / max(1.0, asked),
        }
        for name in window[0]:
            if name not in ("num_asked", "num_right"):
                line[name] = sum(each[name] for each in window) / len(window)
        if self._processes.rank != 0:
            return
        with (self._directory / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        report("  ".join(f"{name} {value:.4g}" for name, value in line.items()))


def _weighted_loss(model: AtlasModel, hidden: Tensor, batch: Batch, weights: Tensor) -> Tensor:
    """Mean cross-entropy of the next token over the targets that weigh anything."""
    scored = weights > 0
    losses = cross_entropy(model.logits(hidden[scored]).float(), batch.targets[scored], reduction="none")
    return (losses * weights[scored]).sum() / weights.sum()


def _open_share(gates: tuple[Gates, ...]) -> Tensor:
    """How far token_gates are open, counted up to a half; the mean over all tokens, heads and layers.

    A fact is written at full strength only where its neighbours in the chunk do not write, and a memory lasts as long
    as nothing else is written at all. Beyond a half the task alone decides: the strength of one write costs nothing.
    token_gate alone, and not what it writes: were inner_lr shut with it, each would take the other's gradient away,
    and what shut on prose would hardly open again for a fact.
    """
    return torch.stack([each.token_gate.clamp(max=0.5).mean() for each in gates] or [torch.zeros(())]).mean()

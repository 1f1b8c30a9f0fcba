"""The runs that the tests of training share: two stages, chunks of two sizes, parts of rows, carried state."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from atlas_model.text import ChatFormat
from atlas_model.training.loop import Corpus, Trainer
from atlas_model.training.metrics import METRICS_FILE, Line, read_metrics
from atlas_model.training.processes import Processes, joined_processes
from atlas_model.training.recipe import RECIPES, Recipe
from atlas_model.training.synthetic_prose import SyntheticProse
from tests.atlas_model.tokenizers import small_tokenizer

SMOKE = RECIPES["smoke"]
SMOKE_IN_FLOAT64 = replace(SMOKE, model=replace(SMOKE.model, state_dtype="float64"))


def trainer(
    directory: Path,
    recipe: Recipe = SMOKE,
    seed: int = 0,
    processes: Processes | None = None,
    autocasts: bool | None = False,
    device: str = "cpu",
    kind: type[Trainer] = Trainer,
) -> Trainer:
    recipe = replace(recipe, model=replace(recipe.model, vocab_size=small_tokenizer().vocab_size))
    corpus = Corpus(SyntheticProse(), small_tokenizer(), ChatFormat())
    return kind(recipe, corpus, directory, seed, torch.float32, processes, autocasts, device)


def finish(run: Trainer, save_seconds: float = 1e9) -> None:
    """Train to the end, with a line of metrics every third step."""
    run.run(save_seconds, say_nothing, log_steps=3)


class KilledError(Exception):
    """What ends a run that is killed."""


class KilledTrainer(Trainer):
    """Saves after every step, until it is killed in the middle of its save of step `killed_at`."""

    killed_at = 0

    def save(self) -> None:
        if self.step == self.killed_at:
            with (self._directory / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write('{"step": 4, "tok')
            (self._directory / f"training_rows.{self.step}.0.new").write_bytes(b"torn")
            raise KilledError
        super().save()


def kill(run: Trainer, killed_at: int) -> None:
    """Train until then, and leave in the folder what a kill does; `run` is a KilledTrainer."""
    assert isinstance(run, KilledTrainer)
    run.killed_at = killed_at
    with suppress(KilledError):
        finish(run, save_seconds=0)


def say_nothing(line: str) -> None:
    del line


def measured(directory: Path) -> list[Line]:
    """The run's metrics without the seconds that it took."""
    return [{name: value for name, value in line.items() if name != "seconds"} for line in read_metrics(directory)]


def saved(directory: Path) -> dict[str, Any]:
    """The shared part of a run's last save."""
    state: dict[str, Any] = torch.load(directory / "training_state.pt", weights_only=True)
    return state


def in_processes(count: int, work: Callable[..., None], *arguments: object) -> None:
    """Call a module's function with Processes and the arguments, in `count` processes, as torchrun would."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    spawn(_work, args=(count, port, work, arguments), nprocs=count)


def _work(rank: int, count: int, port: int, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(count)}
    torch.set_num_threads(1)
    with joined_processes(torch.device("cpu")) as processes:
        work(processes, *arguments)

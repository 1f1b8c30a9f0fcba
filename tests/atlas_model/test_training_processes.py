"""Several processes under DistributedDataParallel train what one does, and are resumed exactly."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atlas_model.checkpoint import load_checkpoint
from atlas_model.training.processes import Processes
from tests.atlas_model.test_training_resume import assert_same
from tests.atlas_model.training_runs import (
    SMOKE_IN_FLOAT64,
    KilledTrainer,
    finish,
    in_processes,
    kill,
    measured,
    saved,
    trainer,
)


def train_whole_and_killed(processes: Processes, directory: Path) -> None:
    """In all processes: one run that goes through, and one that is killed in its second stage, kept so, and resumed."""
    finish(trainer(directory / "whole", SMOKE_IN_FLOAT64, processes=processes))
    kill(trainer(directory / "parts", SMOKE_IN_FLOAT64, processes=processes, kind=KilledTrainer), 15)
    processes.wait()
    if processes.rank == 0:
        shutil.copytree(directory / "parts", directory / "killed")
    processes.wait()
    resumed = trainer(directory / "parts", SMOKE_IN_FLOAT64, processes=processes)
    assert resumed.resume()
    finish(resumed)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("two")
    in_processes(2, train_whole_and_killed, directory)
    return directory


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("one")
    finish(trainer(directory, SMOKE_IN_FLOAT64))
    return directory


def test_two_processes_train_what_one_does_on_the_joined_rows(two_processes: Path, one_process: Path) -> None:
    """In float64 to 1e-12, after 20 steps over both stages, with parts of the rows and carried state."""
    two, one = saved(two_processes / "whole"), saved(one_process)
    for name, weights in one["model"].items():
        torch.testing.assert_close(two["model"][name], weights, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(measured(two_processes / "whole"), measured(one_process), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-12)


def test_two_processes_that_were_killed_and_resumed_end_with_the_very_same_bits(two_processes: Path) -> None:
    whole, parts = two_processes / "whole", two_processes / "parts"
    assert_same(saved(parts), saved(whole))
    assert measured(parts) == measured(whole)


def test_one_process_goes_on_where_two_stopped(two_processes: Path, one_process: Path) -> None:
    resumed = trainer(two_processes / "killed", SMOKE_IN_FLOAT64)
    assert resumed.resume()
    finish(resumed)
    for name, weights in saved(one_process)["model"].items():
        torch.testing.assert_close(saved(two_processes / "killed")["model"][name], weights, rtol=1e-12, atol=1e-12)


@pytest.mark.timeout(180)
def test_the_command_trains_in_several_processes_under_torchrun(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "atlas_model.training", "--smoke", "--scale", "0.1", "--out", str(tmp_path)]
    subprocess.run(command, check=True, timeout=150)
    assert saved(tmp_path)["num_processes"] == 2
    assert load_checkpoint(tmp_path).model.num_parameters > 0

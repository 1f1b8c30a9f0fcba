"""A run that was killed and resumed ends with the very bits of one that was not; what cannot be resumed is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas_model.training.recipe import Recipe
from atlas_model.training.saves import ResumeError
from tests.atlas_model.training_runs import SMOKE, KilledTrainer, finish, kill, measured, saved, trainer


def assert_same(one: Any, other: Any) -> None:
    """Equal to the bit, in every tensor and number but the seconds that it took."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one.keys() - {"seconds"}:
            assert_same(one[name], other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    else:
        assert one == other


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    directory = tmp_path_factory.mktemp("whole")
    finish(trainer(directory))
    return directory


# The second stage begins after step 12, with chunks of another size; in it rows carry their state over three segments.
@pytest.mark.parametrize("killed_at", [2, 6, 12, 13, 18, 20])
def test_a_killed_and_resumed_run_ends_with_the_very_same_weights_optimisers_and_metrics(
    tmp_path: Path, whole: Path, killed_at: int
) -> None:
    kill(trainer(tmp_path, kind=KilledTrainer), killed_at)
    assert saved(tmp_path)["step"] == killed_at - 1
    resumed = trainer(tmp_path)
    assert resumed.resume()
    finish(resumed)
    assert_same(saved(tmp_path), saved(whole))
    assert measured(tmp_path) == measured(whole)
    assert [line["step"] for line in measured(tmp_path)] == [3, 6, 9, 12, 15, 18]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.parametrize(
    "memory",
    [
        {"network": "gated_mlp", "max_momentum_decay": 0.9, "omega_window": 4},
        {"rule": "muon", "step": "free", "muon_granularity": "token", "feature_degree": 2, "feature_width": 8},
    ],
    ids=["gated mlp, momentum, window", "muon of every token, features"],
)
def test_a_run_of_any_memory_is_resumed_exactly(tmp_path: Path, memory: dict[str, Any]) -> None:
    model = replace(SMOKE.model, memory=replace(SMOKE.model.memory, **memory), state_dtype="bfloat16")
    stages = tuple(replace(stage, num_steps=2 + index, write_penalty=0.1) for index, stage in enumerate(SMOKE.stages))
    recipe = replace(SMOKE, model=model, stages=stages)
    finish(trainer(tmp_path / "whole", recipe, autocasts=True))
    kill(trainer(tmp_path / "parts", recipe, autocasts=True, kind=KilledTrainer), 5)
    resumed = trainer(tmp_path / "parts", recipe, autocasts=True)
    assert resumed.resume()
    finish(resumed)
    assert_same(saved(tmp_path / "parts"), saved(tmp_path / "whole"))


def test_there_is_nothing_to_resume_in_an_empty_folder(tmp_path: Path) -> None:
    assert not trainer(tmp_path).resume()


@pytest.mark.parametrize(
    ("recipe", "seed", "message"),
    [
        (replace(SMOKE, max_lr=1e-3), 0, r"run\.recipe\.max_lr was 0\.0015 and is 0\.001"),
        (replace(SMOKE, stages=SMOKE.stages[1:]), 0, r"run\.recipe\.stages was"),
        (SMOKE, 1, r"run\.seed was 0 and is 1"),
    ],
)
def test_another_run_is_not_gone_on_with(whole: Path, recipe: Recipe, seed: int, message: str) -> None:
    with pytest.raises(ResumeError, match=message):
        trainer(whole, recipe, seed).resume()


def test_a_save_of_an_earlier_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "training_state.0.pt").write_bytes(b"")
    with pytest.raises(ResumeError, match="--start-from"):
        trainer(tmp_path).resume()


def test_a_save_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.train_step()
    run.save()
    (tmp_path / "training_rows.1.0.pt").unlink()
    with pytest.raises(ResumeError, match=r"training_rows\.1\.0\.pt is missing"):
        trainer(tmp_path).resume()


def test_a_new_run_in_a_used_folder_begins_its_metrics_anew(tmp_path: Path) -> None:
    recipe = replace(SMOKE, stages=SMOKE.stages[1:])
    for _ in range(2):
        finish(trainer(tmp_path, recipe))
    assert [line["step"] for line in measured(tmp_path)] == [3, 6]

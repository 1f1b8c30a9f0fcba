"""What a stage may say beside its lengths: how its rows are divided, and with which chunks it trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas_model.checkpoint import load_checkpoint
from atlas_model.config import ConfigError
from atlas_model.training.recipe import Recipe
from tests.atlas_model.training_runs import SMOKE, SMOKE_IN_FLOAT64, trainer


def recipe_of(first: dict[str, Any], last: dict[str, Any], model: dict[str, Any] | None = None) -> Recipe:
    """The smoke recipe in float64, three and five steps long: one episode of each row ends within the last stage."""
    changes = ({"num_steps": 3, **first}, {"num_steps": 5, **last})
    stages = tuple(replace(stage, **each) for stage, each in zip(SMOKE.stages, changes, strict=True))
    return replace(SMOKE_IN_FLOAT64, stages=stages, model=replace(SMOKE_IN_FLOAT64.model, **(model or {})))


@pytest.mark.parametrize("num_parts", [2, 4])
@pytest.mark.parametrize("retention", ["decay", "none"])
def test_rows_read_in_parts_train_what_the_undivided_rows_do(tmp_path: Path, num_parts: int, retention: str) -> None:
    """Weights, metrics and each row's carried state, in float64 to 1e-12."""
    memory = replace(SMOKE.model.memory, retention=retention, network="mlp")  # type: ignore[arg-type]
    runs = []
    for steps in (1, num_parts):
        parts = {"gradient_accumulation_steps": steps}
        runs.append(trainer(tmp_path / str(steps), recipe_of(parts, parts, {"memory": memory})))
    whole, divided = runs
    for _ in range(whole.recipe.num_steps):
        assert divided.train_step() == pytest.approx(whole.train_step(), rel=1e-12, abs=1e-12)
    weights = whole.model.state_dict()
    for name, each in divided.model.state_dict().items():
        torch.testing.assert_close(each, weights[name], rtol=1e-12, atol=1e-12)
    for run in runs:
        run.save()
    carried, expected = (
        torch.load(tmp_path / str(steps) / "training_rows.8.0.pt")["carried"] for steps in (num_parts, 1)
    )
    for name, each in carried.items():
        torch.testing.assert_close(each, expected[name], rtol=1e-11, atol=1e-11)


def test_a_stage_trains_with_chunks_of_its_own_and_hands_on_parameters_and_optimisers(tmp_path: Path) -> None:
    sizes = (4, 8)
    run = trainer(tmp_path, recipe_of({"memory_chunk_sizes": sizes}, {}))
    parameters = list(run.model.parameters())
    run.train_step()
    assert run.model.config.memory_chunk_sizes == sizes
    run.save()
    assert load_checkpoint(tmp_path).model.config.memory_chunk_sizes == sizes
    for _ in range(3):
        run.train_step()
    assert run.model.config == run.recipe.model
    assert all(one is other for one, other in zip(run.model.parameters(), parameters, strict=True))
    run.save()
    assert load_checkpoint(tmp_path).model.config == run.recipe.model


def test_the_first_stages_loss_is_that_of_a_model_with_its_chunks(tmp_path: Path) -> None:
    large = trainer(tmp_path / "a", recipe_of({"memory_chunk_sizes": (32,)}, {}))
    own = trainer(tmp_path / "b", recipe_of({"memory_chunk_sizes": None}, {}, {"memory_chunk_sizes": (32, 32)}))
    other = trainer(tmp_path / "c", recipe_of({"memory_chunk_sizes": None}, {}))
    losses = [[run.train_step()["loss"] for _ in range(3)] for run in (large, own, other)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        ({}, {"memory_chunk_sizes": (32,)}, "the last stage's memory_chunk_sizes must be the model's own"),
        ({"memory_chunk_sizes": (1, 2, 3)}, {}, r"stages\[0\].memory_chunk_sizes: .* one for each layer"),
        ({"memory_chunk_sizes": (0,)}, {}, r"stages\[0\].memory_chunk_sizes: .* at least 1"),
        ({"memory_chunk_sizes": ()}, {}, r"stages\[0\].memory_chunk_sizes: .* one for each layer"),
        ({"gradient_accumulation_steps": 3}, {}, "3 gradient_accumulation_steps cannot share 4 rows"),
        ({"gradient_accumulation_steps": 0}, {}, "gradient_accumulation_steps must be at least 1"),
    ],
)
def test_stages_that_no_run_can_follow_are_refused(first: dict[str, Any], last: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe_of(first, last)


def test_the_models_own_chunk_sizes_may_be_said_again(tmp_path: Path) -> None:
    recipe = recipe_of({"memory_chunk_sizes": (1, 64)}, {"memory_chunk_sizes": (16,)})
    assert recipe.stage_model(1) == recipe.model

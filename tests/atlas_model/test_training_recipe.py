"""Recipes as values and as files: what is written is what is trained, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_model.config import ConfigError
from atlas_model.presets import PRESETS
from atlas_model.training.recipe import RECIPES, load_recipe, scaled
from atlas_model.training.tasks import Kind

RECIPE = """
preset = "atlas-50m"
max_lr = 2e-3
num_warmup_steps = 3

[[stages]]
num_steps = 10
batch_size = 2
segment_num_tokens = 64
write_penalty = 0
episodes = { num_tokens = 64, num_facts = [1, 2], kinds = ["location"] }

[[stages]]
num_steps = 30
batch_size = 4
segment_num_tokens = 128
write_penalty = 1.5
lr_ratio = 0.5
episodes = { num_tokens = 512, min_num_tokens = 128 }
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    return tmp_path / "recipe.toml"


def test_a_recipe_file_says_what_is_trained(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.model == PRESETS["atlas-50m"]
    first, second = recipe.stages
    assert (first.num_steps, second.segment_num_tokens, second.write_penalty) == (10, 128, 1.5)
    assert first.episodes.kinds == (Kind.LOCATION,)
    assert (first.episodes.num_facts, second.episodes.min_num_tokens) == ((1, 2), 128)
    assert recipe.text_share == RECIPES["demo"].text_share


def test_a_recipe_survives_its_own_values() -> None:
    values = RECIPES["demo"].to_dict()
    for stage in values["stages"]:
        stage["episodes"]["kinds"] = [kind.value for kind in stage["episodes"]["kinds"]]
    assert type(RECIPES["demo"]).from_dict(values) == RECIPES["demo"]


@pytest.mark.parametrize(
    ("line", "wrong", "message"),
    [
        ("max_lr = 2e-3", "max_lr = 'fast'", "Recipe.max_lr must be of type float"),
        ("max_lr = 2e-3", "maxlr = 2e-3", "unknown key 'maxlr'"),
        ("num_steps = 10", "num_steps = 0", "num_steps must be at least 1"),
        ("num_steps = 10\n", "", "missing key 'num_steps'"),
        ('kinds = ["location"]', 'kinds = ["weather"]', r"kinds must be one of 'location'"),
        ("num_facts = [1, 2]", "num_facts = [2, 1]", "num_facts: need 0 <= lowest <= highest"),
        ("num_facts = [1, 2]", "num_facts = 2", "num_facts must be a list of 2 values"),
        ('preset = "atlas-50m"', 'preset = "gpt"', "preset is one of 'demo'"),
        ("max_lr = 2e-3", "max_lr 2e-3", "recipe.toml"),
    ],
)
def test_what_is_wrong_in_a_recipe_file_is_named(path: Path, line: str, wrong: str, message: str) -> None:
    assert line in RECIPE
    path.write_text(RECIPE.replace(line, wrong), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_recipe(tmp_path / "nowhere.toml")


def test_the_learning_rate_warms_up_is_held_and_falls_to_nothing(path: Path) -> None:
    recipe = load_recipe(path)
    rates = [recipe.lr(step) for step in range(40)]
    assert rates[:4] == pytest.approx([2e-3 / 3, 4e-3 / 3, 2e-3, 2e-3])
    assert rates[9:11] == pytest.approx([2e-3, 1e-3])
    assert rates[29] == pytest.approx(1e-3)
    assert rates[35] == pytest.approx(0.5e-3)
    assert rates[39] == pytest.approx(1e-4)
    assert [stage.num_steps for stage in scaled(recipe, 0.1).stages] == [1, 3]

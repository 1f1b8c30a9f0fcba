"""A dead zone shuts gates that are hardly open, exactly, and leaves the others nearly as they were."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from atlas_model.checkpoint import load_checkpoint
from atlas_model.config import AtlasConfig
from atlas_model.model import AtlasModel
from atlas_model.training.dead_zone import KEPT_GATE, add_dead_zone, main
from tests.tiny import save_tiny_checkpoint, tiny_config, tiny_model

CONFIG = tiny_config(num_layers=1)


def gates_of(model: AtlasModel) -> Tensor:
    """[4, B, H, T] of the first layer, whose inputs no gate changes."""
    stacked: Tensor = model(torch.arange(60)[None]).gates[0].stack()
    return stacked.movedim(-1, 0)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3])
def test_what_is_open_less_than_the_threshold_is_shut_and_the_rest_is_a_line_through_a_third(threshold: float) -> None:
    model = tiny_model(CONFIG)
    before, *others = gates_of(model).unbind()
    add_dead_zone(model, [threshold])
    after, *same = gates_of(model).unbind()
    line = (before - threshold) * KEPT_GATE / (KEPT_GATE - threshold)
    inside = (before > 0) & (before < 1)
    assert torch.allclose(after[inside], line.clamp(0.0, 1.0)[inside], atol=1e-12)
    assert bool((after[before <= threshold] == 0.0).all())
    assert 0 < int((before <= threshold).sum()) < before.numel()
    assert all(torch.equal(old, new) for old, new in zip(others, same, strict=True))


@pytest.mark.parametrize("thresholds", [[0.1], [0.1, 0.4], [-0.1, 0.1]])
def test_thresholds_that_mean_nothing_are_refused(thresholds: list[float]) -> None:
    with pytest.raises(ValueError, match="threshold"):
        add_dead_zone(tiny_model(tiny_config()), thresholds)


def test_the_command_writes_a_folder_that_loads_as_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: AtlasConfig = tiny_config(torch.float32)
    save_tiny_checkpoint(tmp_path / "old", config)
    folders = ["--model", str(tmp_path / "old"), "--out", str(tmp_path / "new")]
    monkeypatch.setattr(sys, "argv", ["dead_zone", *folders, "--thresholds", "0.2"])
    main()
    old, new = load_checkpoint(tmp_path / "old"), load_checkpoint(tmp_path / "new")
    assert new.fingerprint != old.fingerprint
    assert new.model.config == old.model.config
    shut = [float((gates_of(each.model)[0] == 0).double().mean()) for each in (old, new)]
    assert shut[1] > shut[0]

"""The checkpoint that the benches are tried on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import save_tiny_checkpoint, tiny_config


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "tiny"
    save_tiny_checkpoint(folder, tiny_config())
    return folder

"""What whole benches are run with."""

from pathlib import Path

import pytest

from tests.tiny import save_tiny_checkpoint, tiny_config


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that the benches start take the setting from our environment."""
    monkeypatch.setenv("ATLAS_THREADS", "1")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "tiny"
    save_tiny_checkpoint(folder, tiny_config())
    return folder

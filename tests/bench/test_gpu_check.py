"""What is run where a GPU is, on a CPU; and that it refuses to run where there is none. Needs no fixture of a conftest:
a machine with a GPU may not have the packages that those import."""

import json
from pathlib import Path

import pytest
import torch

from bench.__main__ import main
from bench.gpu.equality import LIMITS
from bench.gpu.gpu_check import PARTS
from tests.bench.running import run
from tests.tiny import save_tiny_checkpoint, tiny_config


def test_all_that_a_gpu_is_checked_for_runs_on_a_cpu_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, path = tmp_path / "tiny", tmp_path / "gpu.json"
    save_tiny_checkpoint(folder, tiny_config(torch.float32))
    size = ["--batch-sizes", "1,2", "--rounds", "1", "--long-tokens", "3k", "--budget-seconds", "240"]
    document, printed = run(capsys, "gpu_check", "--device", "cpu", "--model", str(folder), *size, "--json", str(path))
    parts = {part["part"]: part for part in document["parts"]}
    assert list(parts) == list(PARTS)
    assert [part["problem"] for part in parts.values()] == [None] * len(PARTS)
    products = {check["name"].partition(":")[0]: check["limit"] for check in parts["equality"]["checks"]}
    assert products.items() >= LIMITS.items()
    assert len(parts["answers"]["checks"]) == 4
    assert parts["long_prefill"]["figures"]["tokens read"] == 3000
    for name in ("throughput", "roofline", "latency", "copies", "resume"):
        assert parts[name]["figures"]
        assert all(value > 0 for value in parts[name]["figures"].values())
    assert json.loads(path.read_text())["parts"] == document["parts"]
    assert f"{len(PARTS)} of {len(PARTS)} parts passed" in printed


def test_a_machine_without_the_device_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(SystemExit) as caught:
        main(["gpu_check"])
    assert caught.value.code == 2
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_cuda_device_computes_in_float64_what_the_cpu_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny_checkpoint(tmp_path / "tiny", tiny_config())
    options = ["--parts", "equality,answers", "--json", str(tmp_path / "gpu.json")]
    run(capsys, "gpu_check", "--model", str(tmp_path / "tiny"), *options)

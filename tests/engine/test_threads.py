"""The number of threads is what the process may really use."""

from pathlib import Path

import pytest
import torch

from engine.threads import default_num_threads


@pytest.mark.parametrize(
    ("quota", "expected"), [("300000 100000", 3), ("150000 100000", 1), ("50000 100000", 1), ("max 100000", 5)]
)
def test_threads_are_no_more_than_the_containers_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    cpu_max = tmp_path / "cpu.max"
    cpu_max.write_text(quota + "\n")
    assert default_num_threads(cpu_max) == expected


def test_threads_are_no_more_than_the_processors_that_the_process_may_run_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 7})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert default_num_threads(tmp_path / "none") == 2

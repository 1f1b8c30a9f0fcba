"""Parts of a check in processes of their own: what becomes of those that fail, die, or take too long."""

import math
import os
import time
from pathlib import Path

import pytest

from bench.gpu.parts import Check, Notes, PartReport, Settings, run_part


def passes(settings: Settings, notes: Notes) -> None:
    notes.figure("rounds", 1)
    notes.figure("rounds", settings.num_rounds)
    notes.check("difference", 0.5, 1.0)


def raises(settings: Settings, notes: Notes) -> None:
    notes.figure("so far", 7)
    raise RuntimeError("CUDA error\nwith details")


def dies(settings: Settings, notes: Notes) -> None:
    notes.figure("so far", 7)
    os._exit(9)


def hangs(settings: Settings, notes: Notes) -> None:
    notes.figure("so far", 7)
    time.sleep(600)


def is_wrong(settings: Settings, notes: Notes) -> None:
    notes.check("difference", math.nan, 1.0)


def run(name: str, seconds: float = 60.0) -> PartReport:
    settings = Settings(Path(), "cpu", (1,), num_rounds=3, long_num_tokens=1, seed=0, seconds=seconds)
    return run_part(name, f"{__name__}:{name}", settings)


def test_what_a_part_has_noted_is_reported() -> None:
    report = run("passes")
    assert (report.passed, report.figures, report.checks) == (True, {"rounds": 3}, [Check("difference", 0.5, 1.0)])


@pytest.mark.parametrize(
    ("name", "problem", "seconds"),
    [
        ("raises", "RuntimeError: CUDA error", 60.0),
        ("dies", "its process died", 60.0),
        ("hangs", "it was not done after 2.0 s", 2.0),
        ("is_missing", "AttributeError", 60.0),
    ],
)
def test_a_part_that_does_not_end_well_says_why_and_keeps_what_it_knew(name: str, problem: str, seconds: float) -> None:
    report = run(name, seconds)
    assert report.problem is not None
    assert report.problem.startswith(problem)
    assert report.figures == ({} if name == "is_missing" else {"so far": 7})
    assert report.seconds < 30


def test_a_figure_that_is_no_number_is_beyond_every_limit() -> None:
    report = run("is_wrong")
    assert report.problem == "a figure is beyond its limit"
    assert report.to_json()["checks"] == [{"name": "difference", "value": None, "limit": 1.0, "holds": False}]

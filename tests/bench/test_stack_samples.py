"""Looks at a stack, and what they are counted for."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from bench import report
from bench.engine.profile import OTHER, PARTS, function_of, part_of
from bench.stack_samples import Frame, StackSamples, is_within, place

ROOT = report.ROOT


def ours(file: str, function: str) -> Frame:
    return str(ROOT / file), function


LINEAR = ("/venv/lib/site-packages/torch/nn/modules/linear.py", "Linear.forward")
STEP = ours("engine/core.py", "EngineCore.step")


def wait_until(moment: float) -> None:
    while time.perf_counter() < moment:
        pass


def rest_until(moment: float) -> None:
    while time.perf_counter() < moment:
        time.sleep(1e-3)


def test_functions_are_seen_as_often_as_they_last() -> None:
    interval = sys.getswitchinterval()
    with StackSamples() as samples:
        began = time.perf_counter()
        wait_until(began + 0.3)
        rest_until(began + 0.9)
    assert sys.getswitchinterval() == interval
    shares = samples.shares(lambda stack: stack[0][1])
    assert samples.num_samples > 50
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["wait_until"] == pytest.approx(1 / 3, abs=0.12)
    assert shares["rest_until"] == pytest.approx(2 / 3, abs=0.12)


def test_a_look_counts_for_the_innermost_frame_that_is_a_part() -> None:
    block = ours("atlas_model/block.py", "Block.forward")
    mixer = ours("atlas_model/mixers.py", "Mixer.forward")
    factors = ours("atlas_model/memory_networks.py", "MatrixMemory.factors")
    rule = ours("atlas_model/memory/rule.py", "MemoryRule.factors")
    recurrent = ours("atlas_model/memory/recurrent.py", "recurrent")
    assert part_of([LINEAR, block, STEP]) == "feed-forward"
    assert part_of([LINEAR, mixer, block, STEP]) == "projections"
    assert part_of([factors, rule, recurrent, mixer, block, STEP]) == "memory commit"
    assert part_of([recurrent, mixer, block, STEP]) == "memory buffers"
    assert part_of([STEP]) == "core"
    assert part_of([LINEAR]) == OTHER
    assert function_of([LINEAR, mixer, block, STEP]) == "atlas_model/mixers.py Mixer.forward"
    assert function_of([LINEAR]) == OTHER


def test_every_part_is_of_code_that_exists() -> None:
    """A renamed file would have its time counted for its caller, silently."""
    for beginning, _ in PARTS:
        path, _, function = beginning.partition(" ")
        root = Path(sys.modules["torch"].__path__[0]).parent if path.startswith("torch/") else ROOT
        assert (root / path).exists(), beginning
        assert function.rpartition(".")[2] in (root / path).read_text(encoding="utf-8") if function else True, beginning


def test_places_are_named_below_the_root() -> None:
    assert place(STEP, ROOT) == "engine/core.py EngineCore.step"
    assert place(LINEAR, ROOT) == "torch/nn/modules/linear.py Linear.forward"
    assert is_within([LINEAR, STEP], ROOT / "engine")
    assert not is_within([LINEAR, STEP], ROOT / "eng")

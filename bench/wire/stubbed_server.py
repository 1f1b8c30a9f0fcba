"""`python -m bench.wire.stubbed_server`: `python -m server`, but for the engine's core, which is a stub.

SIGUSR1 begins to look at the main thread's stack, and the next one writes, to BENCH_STAGES, the share of each
stage in the time in which that thread did not wait; looks of several such turns add up.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
from pathlib import Path
from types import FrameType

import engine.engine
from bench.wire.interrupts import Interrupts
from bench.wire.stages import WAITING, stage_of
from bench.wire.stub_core import StubCore

STAGES_VARIABLE = "BENCH_STAGES"


class Profiler:
    """A handler for a signal."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._interrupts = Interrupts(stage_of)
        self._is_looking = False

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        self._is_looking = not self._is_looking
        if self._is_looking:
            self._interrupts.start()
            return
        seconds = self._interrupts.stop()
        seconds.pop(WAITING, None)
        total = sum(seconds.values())
        shares = {stage: seconds[stage] / total for stage in sorted(seconds, key=lambda stage: -seconds[stage])}
        written = self._path.with_suffix(".part")
        written.write_text(json.dumps(shares), encoding="utf-8")
        written.rename(self._path)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, Profiler(Path(os.environ[STAGES_VARIABLE])))
    # The one place where the engine is replaced: by name, since nothing of it is meant to be.
    setattr(engine.engine, "EngineCore", StubCore)  # noqa: B010
    runpy.run_module("server", run_name="__main__", alter_sys=True)

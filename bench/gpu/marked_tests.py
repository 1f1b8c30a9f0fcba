"""The tests that are marked gpu. Only their own files are collected, and no conftest: the rest may need more packages
than a machine with a GPU has. On a CPU they are found but not run."""

from __future__ import annotations

import subprocess
import sys

from bench.gpu.parts import Notes, Settings
from bench.report import ROOT

# Seconds before the part's own end.
MARGIN_SECONDS = 3.0


def measure(settings: Settings, notes: Notes) -> None:
    files = sorted(path for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text("utf-8"))
    notes.figure("files", len(files))
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--noconftest", "-p", "no:cacheprovider"]
    if settings.device == "cpu":
        command.append("--collect-only")
    seconds = settings.seconds - MARGIN_SECONDS
    ended = subprocess.run([*command, *map(str, files)], cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    sys.stderr.write(ended.stdout)
    notes.figure("summary", (ended.stdout.strip().splitlines() or ["nothing"])[-1].strip("= "))
    notes.check("exit status", ended.returncode, 0)

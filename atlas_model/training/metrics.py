"""metrics.jsonl: what a run has measured, a line every few steps. A resumed run's file is that of one that went on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

METRICS_FILE = "metrics.jsonl"

Line = dict[str, float]


def read_metrics(directory: Path) -> list[Line]:
    """The lines of a run's file, none where there is no file; ends before a line that a kill cut off."""
    path = directory / METRICS_FILE
    lines: list[Line] = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines


def append_metrics(directory: Path, line: Line) -> None:
    """Add a line to the file."""
    with (directory / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def drop_metrics_after(directory: Path, step: int) -> None:
    """Forget the lines of later steps: a resumed run writes them again, and a new one begins with none."""
    path = directory / METRICS_FILE
    kept = [json.dumps(line) + "\n" for line in read_metrics(directory) if line["step"] <= step]
    path.with_suffix(".new").write_text("".join(kept), encoding="utf-8")
    path.with_suffix(".new").replace(path)


def averaged(window: Sequence[Line]) -> Line:
    """The metrics of several steps as one line: means, and of all answers asked the share that is right."""
    asked, right = (sum(each[name] for each in window) for name in ("num_asked", "num_right"))
    line = {"accuracy": right / max(1.0, asked)}
    for name in window[0]:
        if name not in ("num_asked", "num_right"):
            line[name] = sum(each[name] for each in window) / len(window)
    return line

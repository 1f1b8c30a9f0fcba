"""`python -m atlas_model.training.plot DIR --out FILE.png`: a run's metrics.jsonl as curves over the tokens read."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from atlas_model.training.figure import new_figure, save_figure
from atlas_model.training.metrics import METRICS_FILE, Line, read_metrics

PANELS: Mapping[str, tuple[str, ...]] = {
    "loss": ("loss",),
    "share answered right": ("accuracy", "held_out_accuracy"),
    "learning rate": ("lr",),
    "share of open gates": ("open_on_prose", "open_elsewhere"),
    "memory rms": ("memory_rms",),
    "perplexity of held-out text": ("held_out_perplexity",),
}
"""Title -> the metrics that it shows. A panel of which the run has nothing is left out."""

_NUM_COLUMNS = 3


def draw_metrics(lines: Sequence[Line], path: Path) -> None:
    """One panel per quantity; a metric that only some lines have is drawn where they have it."""
    shown = {title: names for title, names in PANELS.items() if any(name in line for line in lines for name in names)}
    num_rows = -(-len(shown) // _NUM_COLUMNS)
    figure = new_figure(4.5 * _NUM_COLUMNS, 3.2 * num_rows)
    for index, (title, names) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(num_rows, _NUM_COLUMNS, index)
        for name in names:
            points = [(line["tokens"], line[name]) for line in lines if name in line]
            if points:
                axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else "", label=name)
        axes.set(xlabel="tokens read", title=title)
        if len(names) > 1:
            axes.legend(fontsize=7)
    save_figure(figure, path)


def main() -> None:
    """Draw the run of a folder."""
    parser = argparse.ArgumentParser(prog="python -m atlas_model.training.plot", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="the --out of a training")
    parser.add_argument("--out", type=Path, required=True, help="the picture; its ending names the format")
    arguments = parser.parse_args()
    lines = read_metrics(arguments.directory)
    if not lines:
        parser.error(f"{arguments.directory / METRICS_FILE} is missing or empty")
    draw_metrics(lines, arguments.out)


if __name__ == "__main__":
    main()

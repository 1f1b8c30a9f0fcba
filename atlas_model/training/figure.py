"""The only home of matplotlib, which is in the extra `bench` and is loaded when a picture is."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches. Ends the program with what to install where there is no matplotlib."""
    try:
        module = importlib.import_module("matplotlib.figure")
    except ModuleNotFoundError as error:
        raise SystemExit("a plot needs matplotlib: pip install 'atlas-serve[bench]'") from error
    figure: Figure = module.Figure(figsize=(width, height), layout="constrained")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write it in the format of the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)

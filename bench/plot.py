"""Pictures of results; the only home of matplotlib, which is in the extra `bench` and is loaded when a picture is."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.summary import Proportion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, Proportion]


def draw_recall(curves: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Accuracy over length, one curve per condition, with the intervals."""
    figure = _new_figure(7, 4.5)
    axes = figure.add_subplot()
    for condition, points in curves.items():
        lengths = [length for length, _ in points]
        shares = [accuracy.share for _, accuracy in points]
        below = [accuracy.share - accuracy.low for _, accuracy in points]
        above = [accuracy.high - accuracy.share for _, accuracy in points]
        axes.errorbar(lengths, shares, yerr=[below, above], marker="o", capsize=3, label=f"memory {condition}")
    axes.set(xscale="log", xlabel="tokens read before the question", ylabel="share answered right", ylim=(0, 1.02))
    axes.legend()
    _save(figure, path)


def draw_latencies(panels: Mapping[str, Sequence[float]], path: Path) -> None:
    """One cumulative curve per quantity, in seconds."""
    shown = {name: sorted(values) for name, values in panels.items() if values}
    figure = _new_figure(4 * max(len(shown), 1), 3.5)
    for index, (name, values) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(1, len(shown), index)
        axes.step(values, [(rank + 1) / len(values) for rank in range(len(values))], where="post")
        axes.set(xlabel=f"{name} (s)", ylabel="share of values below", ylim=(0, 1.02))
    _save(figure, path)


Curves = Mapping[str, Sequence[tuple[int, int]]]


def draw_capacity(measured: Curves, counted: Curves, path: Path) -> None:
    """Pairs over key width; what is fitted is whole, what was read dotted, what is not measured but counted dashed."""
    figure = _new_figure(8, 6)
    axes = figure.add_subplot()
    for name, points in measured.items():
        axes.plot(*zip(*points, strict=True), "o-" if name.endswith("fitted") else ".:", alpha=0.7, label=name)
    for name, points in counted.items():
        axes.plot(*zip(*points, strict=True), "--", color="black", alpha=0.4)
        axes.annotate(name, points[-1], fontsize=6)
    axes.set(xscale="log", yscale="log", xlabel="key width d_k", ylabel="random pairs, 90 % recalled")
    axes.legend(fontsize=6)
    _save(figure, path)


def _new_figure(width: float, height: float) -> Figure:
    try:
        module = importlib.import_module("matplotlib.figure")
    except ModuleNotFoundError as error:
        raise SystemExit("--plot needs matplotlib: pip install 'atlas-serve[bench]'") from error
    figure: Figure = module.Figure(figsize=(width, height), layout="constrained")
    return figure


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)

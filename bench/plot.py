"""Pictures of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from atlas_model.training.figure import new_figure, save_figure
from bench.summary import Proportion

Point = tuple[float, Proportion]


def draw_recall(curves: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Accuracy over length, one curve per condition, with the intervals."""
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    for condition, points in curves.items():
        lengths = [length for length, _ in points]
        shares = [accuracy.share for _, accuracy in points]
        below = [accuracy.share - accuracy.low for _, accuracy in points]
        above = [accuracy.high - accuracy.share for _, accuracy in points]
        axes.errorbar(lengths, shares, yerr=[below, above], marker="o", capsize=3, label=f"memory {condition}")
    axes.set(xscale="log", xlabel="tokens read before the question", ylabel="share answered right", ylim=(0, 1.02))
    axes.legend()
    save_figure(figure, path)


def draw_latencies(panels: Mapping[str, Sequence[float]], path: Path) -> None:
    """One cumulative curve per quantity, in seconds."""
    shown = {name: sorted(values) for name, values in panels.items() if values}
    figure = new_figure(4 * max(len(shown), 1), 3.5)
    for index, (name, values) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(1, len(shown), index)
        axes.step(values, [(rank + 1) / len(values) for rank in range(len(values))], where="post")
        axes.set(xlabel=f"{name} (s)", ylabel="share of values below", ylim=(0, 1.02))
    save_figure(figure, path)


def draw_capacity(curves: Mapping[str, Sequence[tuple[int, int]]], path: Path) -> None:
    """Pairs over key width; what is not measured but counted, the features, is dashed."""
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    for name, points in curves.items():
        widths, counts = zip(*points, strict=True)
        axes.plot(widths, counts, "k--" if name.startswith("features") else "o-", alpha=0.7, label=name)
    axes.set(xscale="log", yscale="log", xlabel="key width d_k", ylabel="random pairs, 90 % recalled")
    axes.legend(fontsize=7)
    save_figure(figure, path)

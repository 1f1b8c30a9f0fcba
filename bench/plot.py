"""Pictures of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


Curves = Mapping[str, Sequence[tuple[int, int]]]


def draw_capacity(measured: Curves, counted: Curves, path: Path) -> None:
    """Pairs over key width; what is fitted is whole, what was read dotted, what is not measured but counted dashed."""
    figure = new_figure(8, 6)
    axes = figure.add_subplot()
    for name, points in measured.items():
        axes.plot(*zip(*points, strict=True), "o-" if name.endswith("fitted") else ".:", alpha=0.7, label=name)
    for name, points in counted.items():
        axes.plot(*zip(*points, strict=True), "--", color="black", alpha=0.4)
        axes.annotate(name, points[-1], fontsize=6)
    axes.set(xscale="log", yscale="log", xlabel="key width d_k", ylabel="random pairs, 90 % recalled")
    axes.legend(fontsize=6)
    save_figure(figure, path)


def draw_chain(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Each layer's norm, and what is recalled, over the tokens read."""
    figure = new_figure(9, 3.5)
    norms, recall = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    lengths = [row["num_tokens"] for row in rows]
    for layer in range(len(rows[0]["memory_norms"])):
        norms.plot(lengths, [row["memory_norms"][layer] for row in rows], marker="o", label=f"layer {layer}")
    norms.set(xscale="log", yscale="log", xlabel="tokens read", ylabel="Frobenius norm of the memory")
    norms.legend()
    recall.plot(lengths, [row["recall"]["share"] for row in rows], marker="o")
    recall.set(xscale="log", xlabel="tokens read", ylabel="facts of the beginning recalled", ylim=(0, 1.02))
    save_figure(figure, path)


def draw_context_length(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """What a token costs over what was read before it; the cost at the first position dashed."""
    figure = new_figure(9, 3.5)
    for index, kind in enumerate(("prefill", "decode"), start=1):
        axes = figure.add_subplot(1, 2, index)
        milliseconds = [1e3 * row[f"{kind}_seconds"] for row in rows]
        axes.plot([row["position"] for row in rows], milliseconds, marker="o")
        axes.axhline(milliseconds[0], linestyle="--", color="black", alpha=0.4)
        axes.set(
            xscale="log", xlabel="tokens read before", ylabel=f"{kind}, ms a token", ylim=(0, 1.3 * max(milliseconds))
        )
    save_figure(figure, path)


def draw_throughput_latency(levels: Sequence[Mapping[str, Any]], path: Path) -> None:
    """First token and the gaps after it, over the tokens a second that the server gave at each level of load."""
    figure = new_figure(9, 3.5)
    for index, name in enumerate(("ttft", "itl"), start=1):
        axes = figure.add_subplot(1, 2, index)
        shown = [level for level in levels if level[f"{name}_seconds"] is not None]
        throughput = [level["output_tokens_per_second"] for level in shown]
        for figure_name in ("median", "p99"):
            axes.plot(throughput, [level[f"{name}_seconds"][figure_name] for level in shown], "o-", label=figure_name)
        for level, x in zip(shown, throughput, strict=True):
            label = str(level.get("concurrency", level.get("rate")))
            axes.annotate(label, (x, level[f"{name}_seconds"]["median"]), fontsize=7)
        axes.set(yscale="log", xlabel="tokens answered a second", ylabel=f"{name} (s)")
        axes.legend()
    save_figure(figure, path)


def draw_resume(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Seconds to the first token over what was read before: going on from each tier, and reading it all again."""
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    for way in dict.fromkeys(row["way"] for row in rows):
        points = [(row["num_tokens"], row["ttft_seconds"]["median"]) for row in rows if row["way"] == way]
        axes.plot(*zip(*points, strict=True), "o-", label=way)
    axes.set(xscale="log", yscale="log", xlabel="tokens read before", ylabel="seconds to the first token (median)")
    axes.legend()
    save_figure(figure, path)

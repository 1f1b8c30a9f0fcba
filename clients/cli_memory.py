"""How the `atlas` command shows a session's memory: tables, and curves that are text, so that they work over ssh."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from clients.messages import MemorySample, SessionMemory

# Of a layer of a sample. Those without a column are in the plot alone: a table is at most 80 characters wide.
_QUANTITIES = {
    "norm": "norm",
    "momentum_norm": "norm of the momentum",
    "distance_from_initial": "distance from the start",
    "effective_rank": "effective rank",
    "top_singular_value": "largest singular value",
    "update_norm": "update by a token",
    "token_gate": "token gate",
    "inner_lr": "inner learning rate",
    "momentum_decay": "momentum decay",
    "retention": "retention, local times global",
    "global_retention": "global retention",
    "surprise": "surprise",
    "memory_share": "memory's share beside attention",
}
_COLUMNS = {
    "norm": "norm",
    "distance_from_initial": "from start",
    "effective_rank": "rank",
    "token_gate": "gate",
    "retention": "retention",
    "surprise": "surprise",
    "memory_share": "share",
}
_MAX_ROWS = 8
_LEVELS = "▁▂▃▄▅▆▇█"

Curve = Sequence[float | None]


def heads_table(memory: SessionMemory) -> Table:
    """Each head of each layer now, its gates and surprise being those of the tokens since the memory's last step."""
    table = Table("layer", "head", "matrix", "norm", "from start", "rank", "gate", "retention", "surprise", box=None)
    for head in memory.heads:
        recent = head["recent"] or {}
        told = [_number(recent.get(name)) for name in ("token_gate", "retention", "surprise")]
        for name, matrix in head["matrices"].items():
            numbers = [_number(matrix[key]) for key in ("norm", "distance_from_initial", "effective_rank")]
            table.add_row(str(head["layer"]), str(head["head"]), name, *numbers, *told)
    return table


def samples_table(samples: Sequence[MemorySample]) -> Table:
    """Means over the layers, of samples from the first to the last, at most 8."""
    table = Table("tokens", *_COLUMNS.values(), box=None)
    last, num_rows = len(samples) - 1, min(len(samples), _MAX_ROWS)
    for row in range(num_rows):
        sample = samples[round(row * last / max(num_rows - 1, 1))]
        numbers = [_number(_mean([layer.get(name) for layer in sample.layers])) for name in _COLUMNS]
        table.add_row(f"{sample.position:,}", *numbers)
    return table


def plot_samples(samples: Sequence[MemorySample]) -> str:
    """A row for each quantity and layer, a column for each sample; each row has a scale of its own, and says which."""
    return "\n".join(_plot_lines(samples))


def _plot_lines(samples: Sequence[MemorySample]) -> Iterator[str]:
    for name, label in _QUANTITIES.items():
        curves = {
            int(layers[0]["layer"] or 0): [layer.get(name) for layer in layers]
            for layers in zip(*(sample.layers for sample in samples), strict=True)
        }
        told = [number for curve in curves.values() for number in curve if number is not None]
        if not told:
            continue
        if min(told) == max(told):
            yield f"{label}: {_number(told[0])} throughout"
            continue
        yield label
        for layer, curve in curves.items():
            yield f"  layer {layer:<3}{_row(curve)}"
    yield f"{len(samples)} samples, from token {samples[0].position:,} to token {samples[-1].position:,}"


def _row(curve: Curve) -> str:
    told = [number for number in curve if number is not None]
    low, high = min(told, default=0.0), max(told, default=0.0)
    scale = (len(_LEVELS) - 1) / (high - low) if high > low else 0.0
    levels = "".join(" " if number is None else _LEVELS[round((number - low) * scale)] for number in curve)
    return f"{levels}  {_number(low)} to {_number(high)}, last {_number(curve[-1])}"


def _mean(numbers: Curve) -> float | None:
    told = [number for number in numbers if number is not None]
    return sum(told) / len(told) if told else None


def _number(number: float | None) -> str:
    return "–" if number is None else f"{number:.4g}"

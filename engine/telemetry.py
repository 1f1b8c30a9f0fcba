"""Plain numbers about the engine, for whoever publishes them. No metric library here."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from atlas_model.telemetry import LayerSample
from engine.sequence import Priority

_SHARES = tuple(tenth / 10 for tenth in range(11))
_ITERATION_TOKENS_BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_QUEUE_SECONDS_BOUNDS = (0.001, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
# Of a LayerSample: what is counted of it, and the upper bounds. The lists are short, for each layer has its own counts.
_MEMORY_BOUNDS: Mapping[str, tuple[float, ...]] = {
    "norm": tuple(2.0**exponent for exponent in range(-2, 11)),
    "effective_rank": tuple(2.0**exponent for exponent in range(9)),
    "update_norm": tuple(4.0**exponent for exponent in range(-10, 2)),
    "surprise": tuple(4.0**exponent for exponent in range(-5, 6)),
    "token_gate": _SHARES,
    "retention": (0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 1.0),
    "memory_share": _SHARES,
}


@dataclass(frozen=True, slots=True)
class HistogramCounts:
    """counts: of the values up to each bound and above the one before; the last is of everything above."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @classmethod
    def empty(cls, bounds: tuple[float, ...]) -> "HistogramCounts":
        return cls(bounds, (0,) * (len(bounds) + 1), 0.0)

    def with_value(self, value: float) -> "HistogramCounts":
        index = bisect_left(self.bounds, value)
        counts = (*self.counts[:index], self.counts[index] + 1, *self.counts[index + 1 :])
        return HistogramCounts(self.bounds, counts, self.total + value)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """`..._total` grow for ever, and so do histograms; the rest is now.

    prompt_tokens_total: fed by prefill. generation_tokens_total: sampled, `<end>` excluded.
    num_background_running, num_background_waiting: of those, documents and replays.
    num_resident_states: of ended sequences, in slots that are free for others.
    iteration_tokens: steps by the tokens that they fed.
    max_num_paced_tokens: what a prefill step of background sequences may hold while others decode.
    queue_seconds: sequences that got a slot, by the time that it took.
    memory: samples of all sequences' memories, kept or not, by the LayerSample's field and the layer.
    """

    num_running: int
    num_waiting: int
    num_background_running: int
    num_background_waiting: int
    num_slots: int
    num_slots_in_use: int
    num_resident_states: int
    prompt_tokens_total: int
    generation_tokens_total: int
    iteration_tokens: HistogramCounts
    max_num_paced_tokens: int
    queue_seconds: Mapping[Priority, HistogramCounts]
    memory: Mapping[tuple[str, int], HistogramCounts]


class Counters:
    """What the core counts as it goes. The histograms are values: who holds one may read it in any thread."""

    def __init__(self) -> None:
        self.prompt_tokens_total = 0
        self.generation_tokens_total = 0
        self.iteration_tokens = HistogramCounts.empty(_ITERATION_TOKENS_BOUNDS)
        self.queue_seconds: Mapping[Priority, HistogramCounts] = dict.fromkeys(
            Priority, HistogramCounts.empty(_QUEUE_SECONDS_BOUNDS)
        )
        self.memory: Mapping[tuple[str, int], HistogramCounts] = {}

    def count_step(self, num_tokens: int, is_prefill: bool) -> None:
        self.iteration_tokens = self.iteration_tokens.with_value(num_tokens)
        if is_prefill:
            self.prompt_tokens_total += num_tokens

    def count_admission(self, queue_seconds: float, priority: Priority) -> None:
        counted = self.queue_seconds[priority].with_value(queue_seconds)
        self.queue_seconds = {**self.queue_seconds, priority: counted}

    def count_sample(self, layers: tuple[LayerSample, ...]) -> None:
        counted = dict(self.memory)
        for layer in layers:
            for name, bounds in _MEMORY_BOUNDS.items():
                value, key = getattr(layer, name), (name, layer.layer)
                if value is not None:
                    counted[key] = counted.get(key, HistogramCounts.empty(bounds)).with_value(value)
        self.memory = counted

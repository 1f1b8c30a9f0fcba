"""What the server counts, under vLLM's names behind our prefix (API.md). The only home of prometheus-client.

One registry per server, so that several can live in one process. No label ever holds a session, a tenant or a text.
Whatever a label can be is there from the start, at 0: a rate sees a first failure only where there was a 0 before it.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.errors import SnapshotError, StoreUnavailable
from engine.sequence import FinishReason, Tier
from engine.sessions import SessionManager
from engine.telemetry import EngineStats, HistogramCounts
from server.errors import statuses_by_code

PREFIX = "atlas_"
EXPOSITION_TYPE = CONTENT_TYPE_LATEST

_FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_INTER_TOKEN_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0),
)
_REQUEST_SECONDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_STORE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_RESUME_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, *_STORE_SECONDS)
# Of a sample of a layer's memory: the metric and what it says.
_MEMORY = {
    "norm": ("memory_norm", "Norm of a head's memory"),
    "effective_rank": ("memory_effective_rank", "Effective rank of a head's memory"),
    "update_norm": ("memory_update_norm", "How far a token moves the memory"),
    "surprise": ("memory_surprise", "Inner loss of the memory's answers to new tokens"),
    "token_gate": ("memory_token_gate", "Weight of a token in what is learned"),
    "retention": ("memory_retention", "What a token leaves of the memory"),
    "memory_share": ("memory_share", "The memory's share of what it and the attention add"),
}
_CONFLICTS = (409, 412)
_STATE_BYTES = tuple(float(2**exponent) for exponent in range(14, 31, 2))


class Metrics:
    """Everything that is pushed; what the engine counts itself is read when somebody asks (`watch`)."""

    def __init__(self) -> None:
        # When a series began is a series of its own for each, which nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = self._counter("http_requests", "Requests that ended.", ("method", "route", "status"))
        self.first_token_seconds = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first text.", _FIRST_TOKEN_SECONDS
        )
        self.inter_token_seconds = LoopHistogram(
            PREFIX + "inter_token_latency_seconds", "Between two outputs of one answer.", _INTER_TOKEN_SECONDS
        )
        self._registry.register(self.inter_token_seconds)
        self.request_seconds = self._histogram(
            "e2e_request_latency_seconds", "From a request's arrival to its end.", _REQUEST_SECONDS
        )
        self.queue_seconds = self._histogram(
            "request_queue_time_seconds", "Waiting for a slot on the device.", _REQUEST_SECONDS
        )
        self.prefill_seconds = self._histogram(
            "request_prefill_time_seconds", "From a slot to the first token.", _REQUEST_SECONDS
        )
        self.decode_seconds = self._histogram(
            "request_decode_time_seconds", "From the first token to the last.", _REQUEST_SECONDS
        )
        self._success = self._counter("request_success", "Answers that ended.", ("finished_reason",))
        self._rejected = self._counter("requests_rejected", "Requests that were refused or failed.", ("reason",))
        for reason in FinishReason:
            self._success.labels(reason.value)
        for code in statuses_by_code():
            self._rejected.labels(code)
        self._resume_seconds = self._histogram(
            "session_resume_seconds", "Making a committed session ready to go on.", _RESUME_SECONDS, ("tier",)
        )
        for tier in Tier:
            self._resume_seconds.labels(tier.value)
        self._commit_seconds = self._histogram(
            "session_commit_seconds", "Encoding and committing a generation.", _STORE_SECONDS
        )
        self._state_bytes = self._histogram("session_state_bytes", "Size of committed generations.", _STATE_BYTES)
        self._conflicts = self._counter("session_conflicts", "Turns refused because of others.", ("reason",))
        self._restore_failures = self._counter(
            "session_restore_failures", "Sessions that could not be loaded.", ("reason",)
        )
        for code, status in statuses_by_code().items():
            if status in _CONFLICTS:
                self._conflicts.labels(code)
        for code in (StoreUnavailable.code, *statuses_by_code(SnapshotError)):
            self._restore_failures.labels(code)
        self._memorized = self._counter("tokens_memorized", "Tokens that committed generations have learned.")

    def watch(self, stats: Callable[[], EngineStats], sessions: SessionManager) -> None:
        """Publish an engine's own numbers, and its sessions', from now on."""
        self._registry.register(_EngineCollector(stats))
        ready = self._gauge(
            "sessions", "Sessions that go on without the store, by where they are; one may be in both.", ("tier",)
        )
        ready.labels("host").set_function(lambda: sessions.num_host_copies)
        ready.labels("device").set_function(lambda: stats().num_resident_states)
        budget = sessions.budget
        for name, text, function in (
            ("inflight_state_bytes", "Room held for states on their way.", lambda: budget.num_bytes),
            ("inflight_state_bytes_max", "The most that is held.", lambda: budget.max_num_bytes),
            ("inflight_state_waiting", "Requests that wait for such room.", lambda: budget.num_waiting),
        ):
            self._gauge(name, text).set_function(function)

    def finished(self, reason: str) -> None:
        self._success.labels(reason).inc()

    def answered(self, method: str, route: str, status: int) -> None:
        """A request has ended. route: the template of its path, never the path."""
        self._requests.labels(method, route, str(status)).inc()

    def refused(self, status: int, reason: str) -> None:
        """`reason` is an error code."""
        self._rejected.labels(reason).inc()
        if status in _CONFLICTS:
            self._conflicts.labels(reason).inc()

    def resumed(self, tier: str, seconds: float) -> None:
        self._resume_seconds.labels(tier).observe(seconds)

    def restore_failed(self, reason: str) -> None:
        self._restore_failures.labels(reason).inc()

    def committed(self, seconds: float, num_bytes: int, num_tokens: int) -> None:
        self._commit_seconds.observe(seconds)
        self._state_bytes.observe(num_bytes)
        self._memorized.inc(num_tokens)

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
        return Gauge(PREFIX + name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float], labels: Iterable[str] = ()) -> Histogram:
        return Histogram(PREFIX + name, text, labels, buckets=tuple(buckets), registry=self._registry)


class LoopHistogram(Collector):
    """What is observed with every token, by one thread: without the library's locks, a fifth of its time."""

    def __init__(self, name: str, text: str, bounds: Iterable[float]) -> None:
        self._name = name
        self._text = text
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=())
        counts = HistogramCounts(self._bounds, tuple(self._counts), self._total)
        family.add_metric((), _buckets(counts), counts.total)
        yield family


class _EngineCollector(Collector):
    """The engine's plain numbers, read at each scrape."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        yield GaugeMetricFamily(PREFIX + "num_requests_running", "Sequences in a slot.", stats.num_running)
        yield GaugeMetricFamily(PREFIX + "num_requests_waiting", "Sequences without a slot.", stats.num_waiting)
        yield GaugeMetricFamily(
            PREFIX + "num_background_running", "Documents and replays in a slot.", stats.num_background_running
        )
        yield GaugeMetricFamily(
            PREFIX + "num_background_waiting", "Documents and replays without one.", stats.num_background_waiting
        )
        yield GaugeMetricFamily(
            PREFIX + "max_paced_tokens",
            "Tokens of documents that a step may read while answers are written.",
            stats.max_num_paced_tokens,
        )
        queue = HistogramMetricFamily(
            PREFIX + "slot_queue_time_seconds",
            "Waiting for a slot, each commit of a document by itself.",
            labels=("priority",),
        )
        for priority, histogram in stats.queue_seconds.items():
            queue.add_metric((priority.value,), _buckets(histogram), histogram.total)
        yield queue
        yield GaugeMetricFamily(PREFIX + "state_slots", "Slots on the device.", stats.num_slots)
        yield GaugeMetricFamily(PREFIX + "state_slots_in_use", "Slots on the device in use.", stats.num_slots_in_use)
        yield CounterMetricFamily(PREFIX + "prompt_tokens", "Tokens fed by prefill.", stats.prompt_tokens_total)
        yield CounterMetricFamily(PREFIX + "generation_tokens", "Tokens sampled.", stats.generation_tokens_total)
        tokens = HistogramMetricFamily(PREFIX + "iteration_tokens_total", "Tokens fed in one step.", labels=())
        tokens.add_metric((), _buckets(stats.iteration_tokens), stats.iteration_tokens.total)
        yield tokens
        for field, (name, text) in _MEMORY.items():
            family = HistogramMetricFamily(PREFIX + name, f"{text}, of samples of sessions.", labels=("layer",))
            for (counted, layer), histogram in stats.memory.items():
                if counted == field:
                    family.add_metric((str(layer),), _buckets(histogram), histogram.total)
            yield family


def _buckets(histogram: HistogramCounts) -> list[tuple[str, int]]:
    bounds = (*(str(float(bound)) for bound in histogram.bounds), "+Inf")
    return list(zip(bounds, accumulate(histogram.counts), strict=True))

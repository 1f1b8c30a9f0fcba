"""The raw record of one request under load, and the latencies that it amounts to. Pure: the clock is the runner's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from bench.report import Json
from bench.serving.load_workload import Kind
from bench.summary import describe

Limits = dict[str, float]


@dataclass(frozen=True, slots=True)
class RequestTicks:
    """When one request was sent, when each chunk with text arrived, when the end did: seconds since the run began.

    `chunk_seconds` is empty for an ingest, and when `error` is set, where `end_seconds` is the moment of the failure.
    num_prompt_tokens: the logical context, of which `num_cached_tokens` were in the memory already; of an ingest, what
    it has read.
    due_seconds: in an open loop, when the request was to be sent; None where the one before decides.
    is_refused: the server said that it has no room (429, 503); `error` says what it said.
    """

    stream: int
    number: int
    sent_seconds: float
    chunk_seconds: tuple[float, ...]
    end_seconds: float
    num_prompt_tokens: int
    num_completion_tokens: int
    error: str | None = None
    kind: Kind = Kind.CHAT
    due_seconds: float | None = None
    is_refused: bool = False
    num_cached_tokens: int = 0

    @property
    def ttft_seconds(self) -> float | None:
        """From sending to the first chunk with a token."""
        return self.chunk_seconds[0] - self.sent_seconds if self.chunk_seconds else None

    @property
    def itl_seconds(self) -> list[float]:
        """The gaps between chunks."""
        return [later - earlier for earlier, later in pairwise(self.chunk_seconds)]

    @property
    def tpot_seconds(self) -> float | None:
        """Mean time per token after the first; None for answers of one token."""
        if not self.chunk_seconds or self.num_completion_tokens < 2:
            return None
        return (self.chunk_seconds[-1] - self.chunk_seconds[0]) / (self.num_completion_tokens - 1)

    @property
    def e2e_seconds(self) -> float:
        """From sending to the end, which for a session waits for its commit."""
        return self.end_seconds - self.sent_seconds

    @property
    def tail_seconds(self) -> float | None:
        """From the last chunk with text to the end: the decision to stop and, for a session, the commit."""
        return self.end_seconds - self.chunk_seconds[-1] if self.chunk_seconds else None

    @property
    def late_seconds(self) -> float | None:
        """How much later than due an open loop has sent it: its session was still busy with the turn before."""
        return None if self.due_seconds is None else self.sent_seconds - self.due_seconds


LATENCIES: dict[str, Callable[[RequestTicks], float | None]] = {
    "ttft": lambda ticks: ticks.ttft_seconds,
    "tpot": lambda ticks: ticks.tpot_seconds,
    "e2e": lambda ticks: ticks.e2e_seconds,
    "tail": lambda ticks: ticks.tail_seconds,
    "late": lambda ticks: ticks.late_seconds,
}


def latencies(records: Sequence[RequestTicks]) -> dict[str, list[float]]:
    """Every latency of the requests that were answered, by its name; itl has one value per gap."""
    answered = [ticks for ticks in records if ticks.error is None]
    values = {
        name: [value for ticks in answered if (value := latency(ticks)) is not None]
        for name, latency in LATENCIES.items()
    }
    return {**values, "itl": [gap for ticks in answered for gap in ticks.itl_seconds]}


def summarise_load(records: Sequence[RequestTicks], limits: Limits) -> Json:
    """Distributions in seconds, throughput over the whole run, and goodput when limits are given; with several kinds of
    requests the distributions also kind by kind.

    Goodput is the share of all requests, failed and refused ones included, that meet every limit that applies to them.
    """
    answered = [ticks for ticks in records if ticks.error is None]
    num_refused = sum(ticks.is_refused for ticks in records)
    run_seconds = max(ticks.end_seconds for ticks in records) - min(ticks.sent_seconds for ticks in records)
    num_read = sum(ticks.num_prompt_tokens - ticks.num_cached_tokens for ticks in answered)
    summary: Json = {
        "num_requests": len(records),
        "num_refused": num_refused,
        "num_failed": len(records) - len(answered) - num_refused,
        "run_seconds": run_seconds,
        "requests_per_second": len(answered) / run_seconds,
        "input_tokens_per_second": num_read / run_seconds,
        "output_tokens_per_second": sum(ticks.num_completion_tokens for ticks in answered) / run_seconds,
        **_distributions(answered),
    }
    if limits:
        num_good = sum(_meets(ticks, limits) for ticks in answered)
        summary |= {"goodput_limits_seconds": limits, "goodput": num_good / len(records)}
    kinds = sorted({ticks.kind for ticks in records})
    if len(kinds) > 1:
        summary["kinds"] = {
            kind.value: {
                "num_requests": sum(ticks.kind is kind for ticks in records),
                "num_answered": sum(ticks.kind is kind for ticks in answered),
                **_distributions([ticks for ticks in answered if ticks.kind is kind]),
            }
            for kind in kinds
        }
    return summary


def _distributions(records: Sequence[RequestTicks]) -> Json:
    """None for what these requests do not have."""
    described = {name: describe(values) for name, values in latencies(records).items()}
    return {f"{name}_seconds": None if value is None else asdict(value) for name, value in described.items()}


def _meets(ticks: RequestTicks, limits: Limits) -> bool:
    return all((LATENCIES[name](ticks) or 0.0) <= limit for name, limit in limits.items())

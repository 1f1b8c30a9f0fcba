"""The raw record of one request under load, and the latencies that it amounts to. Pure: the clock is the runner's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from bench.report import Json
from bench.summary import describe

Limits = dict[str, float]


@dataclass(frozen=True, slots=True)
class RequestTicks:
    """When one request was sent, when each chunk with text arrived, when the end did: seconds since the run began.

    `chunk_seconds` is empty and `end_seconds` is the moment of the failure when `error` is set.
    """

    stream: int
    number: int
    sent_seconds: float
    chunk_seconds: tuple[float, ...]
    end_seconds: float
    num_prompt_tokens: int
    num_completion_tokens: int
    error: str | None = None

    @property
    def ttft_seconds(self) -> float:
        """From sending to the first chunk with a token."""
        return self.chunk_seconds[0] - self.sent_seconds

    @property
    def itl_seconds(self) -> list[float]:
        """The gaps between chunks."""
        return [later - earlier for earlier, later in pairwise(self.chunk_seconds)]

    @property
    def tpot_seconds(self) -> float | None:
        """Mean time per token after the first; None for answers of one token."""
        if self.num_completion_tokens < 2:
            return None
        return (self.chunk_seconds[-1] - self.chunk_seconds[0]) / (self.num_completion_tokens - 1)

    @property
    def e2e_seconds(self) -> float:
        """From sending to the end, which for a session waits for its commit."""
        return self.end_seconds - self.sent_seconds

    @property
    def tail_seconds(self) -> float:
        """From the last chunk with text to the end: the decision to stop and, for a session, the commit."""
        return self.end_seconds - self.chunk_seconds[-1]


LATENCIES: dict[str, Callable[[RequestTicks], float | None]] = {
    "ttft": lambda ticks: ticks.ttft_seconds,
    "tpot": lambda ticks: ticks.tpot_seconds,
    "e2e": lambda ticks: ticks.e2e_seconds,
    "tail": lambda ticks: ticks.tail_seconds,
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
    """Distributions in seconds, throughput over the whole run, and goodput when limits are given.

    Goodput is the share of all requests, failed ones included, that meet every limit (`ttft`, `tpot`, `e2e`).
    """
    answered = [ticks for ticks in records if ticks.error is None]
    run_seconds = max(ticks.end_seconds for ticks in records) - min(ticks.sent_seconds for ticks in records)
    summaries = {name: describe(values) for name, values in latencies(records).items()}
    num_completion_tokens = sum(ticks.num_completion_tokens for ticks in answered)
    summary: Json = {
        "num_requests": len(records),
        "num_failed": len(records) - len(answered),
        "run_seconds": run_seconds,
        "requests_per_second": len(answered) / run_seconds,
        "output_tokens_per_second": num_completion_tokens / run_seconds,
        **{f"{name}_seconds": None if value is None else asdict(value) for name, value in summaries.items()},
    }
    if limits:
        num_good = sum(_meets(ticks, limits) for ticks in answered)
        summary |= {"goodput_limits_seconds": limits, "goodput": num_good / len(records)}
    return summary


def _meets(ticks: RequestTicks, limits: Limits) -> bool:
    return all((LATENCIES[name](ticks) or 0.0) <= limit for name, limit in limits.items())

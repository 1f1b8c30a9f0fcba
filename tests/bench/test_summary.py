"""Percentiles, intervals and latencies: values worked out by hand or by numpy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.serving.load_workload import Kind
from bench.serving.ticks import RequestTicks, latencies, summarise_load
from bench.summary import describe, percentile, proportion


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), abs=1e-6)


def test_nothing_has_no_distribution() -> None:
    assert describe([]) is None


def test_one_value_is_its_own_distribution_without_spread() -> None:
    one = describe([3.0])
    assert one is not None
    assert (one.n, one.mean, one.median, one.std, one.p90, one.p99) == (1, 3.0, 3.0, 0.0, 3.0, 3.0)


@pytest.mark.parametrize(
    ("num_right", "n", "low", "high"),
    [(80, 100, 0.7112, 0.8666), (0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0), (1, 2, 0.0945, 0.9055)],
)
def test_intervals_are_wilsons(num_right: int, n: int, low: float, high: float) -> None:
    interval = proportion(num_right, n)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_share_lies_in_its_own_interval(counts: tuple[int, int]) -> None:
    interval = proportion(*counts)
    assert 0 <= interval.low <= interval.share <= interval.high <= 1


def test_a_figure_is_printed_with_its_interval_and_n() -> None:
    assert str(proportion(80, 100)) == " 80.0 % [71.1, 86.7] n=100"


def ticks(sent: float, chunks: tuple[float, ...], end: float, num_tokens: int, **rest: Any) -> RequestTicks:
    return RequestTicks(0, 0, sent, chunks, end, num_prompt_tokens=5, num_completion_tokens=num_tokens, **rest)


def test_latencies_are_what_the_field_means_by_their_names() -> None:
    record = ticks(1.0, (1.5, 1.75, 2.5), 3.0, num_tokens=5)
    assert record.ttft_seconds == 0.5
    assert record.itl_seconds == [0.25, 0.75]
    assert record.tpot_seconds == 0.25
    assert record.e2e_seconds == 2.0
    assert record.tail_seconds == 0.5


def test_an_answer_of_one_token_has_no_time_per_further_token() -> None:
    assert ticks(0.0, (1.0,), 1.0, num_tokens=1).tpot_seconds is None


def test_failed_requests_count_against_goodput_and_for_nothing_else() -> None:
    records = [
        ticks(0.0, (0.1, 0.2), 0.5, num_tokens=2),
        ticks(0.0, (0.9, 1.0), 2.0, num_tokens=2),
        ticks(1.0, (), 4.0, num_tokens=0, error="queue_full: full"),
    ]
    summary = summarise_load(records, {"ttft": 0.5})
    assert (summary["num_requests"], summary["num_failed"], summary["run_seconds"]) == (3, 1, 4.0)
    assert (summary["requests_per_second"], summary["output_tokens_per_second"]) == (0.5, 1.0)
    assert summary["goodput"] == pytest.approx(1 / 3)
    assert latencies(records)["ttft"] == [0.1, 0.9]


def test_a_refused_request_is_no_failure_and_no_answer() -> None:
    records = [
        ticks(0.0, (0.5,), 1.0, num_tokens=1),
        ticks(0.0, (), 0.1, num_tokens=0, error="queue_full: full", is_refused=True),
        ticks(0.0, (), 2.0, num_tokens=0, error="memory_diverged: no"),
    ]
    summary = summarise_load(records, {"e2e": 10.0})
    assert (summary["num_refused"], summary["num_failed"], summary["requests_per_second"]) == (1, 1, 0.5)
    assert summary["goodput"] == pytest.approx(1 / 3)


def test_tokens_that_were_in_the_memory_are_not_counted_as_read() -> None:
    records = [
        ticks(0.0, (0.5,), 1.0, num_tokens=1, num_cached_tokens=3),
        RequestTicks(0, 1, 0.0, (), 2.0, num_prompt_tokens=40, num_completion_tokens=0, kind=Kind.INGEST),
    ]
    assert summarise_load(records, {})["input_tokens_per_second"] == (2 + 40) / 2.0


def test_kinds_are_described_apart_and_an_ingest_has_no_first_token() -> None:
    records = [
        ticks(0.0, (0.5,), 1.0, num_tokens=1),
        ticks(0.0, (), 3.0, num_tokens=0, kind=Kind.INGEST),
    ]
    summary = summarise_load(records, {"ttft": 1.0})
    kinds = summary["kinds"]
    assert isinstance(kinds, dict)
    assert kinds["ingest"]["ttft_seconds"] is None
    assert kinds["ingest"]["e2e_seconds"]["mean"] == 3.0
    assert kinds["chat"]["ttft_seconds"]["mean"] == 0.5
    # A limit on what an ingest does not have is met by it.
    assert summary["goodput"] == 1.0
    assert "kinds" not in summarise_load(records[:1], {})


def test_an_open_loop_tells_how_late_it_was() -> None:
    assert ticks(1.5, (2.0,), 3.0, num_tokens=1, due_seconds=1.25).late_seconds == 0.25
    assert ticks(1.5, (2.0,), 3.0, num_tokens=1).late_seconds is None

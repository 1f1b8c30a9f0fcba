"""The plan of a load, by values."""

from collections import Counter
from itertools import pairwise
from random import Random
from statistics import fmean

import pytest

from bench.serving.load_sessions import LoadSessions
from bench.serving.load_workload import Kind, Task, Workload, parse_shares, poisson_arrivals


def text_of(num_tokens: int, name: str) -> str:
    return f"{num_tokens} {name}"


def workload(shares: str = "chat=1", num_sessions: int | None = None, zipf: float = 0.0, seed: int = 0) -> Workload:
    return Workload(parse_shares(shares), num_sessions, zipf, 10, 50, seed, "load-x", text_of)


def test_a_stream_is_a_session_that_goes_on_unless_there_is_a_pool_or_none() -> None:
    first, second = workload().streams(2, range(3))
    assert [task.session for task in (*first, *second)] == ["load-x-0"] * 3 + ["load-x-1"] * 3
    assert [(task.number, task.text, task.due_seconds) for task in first] == [
        (number, f"10 0/{number}", None) for number in range(3)
    ]
    pooled = {task.session for stream in workload(num_sessions=3).streams(4, range(20)) for task in stream}
    assert pooled == {"load-x-0", "load-x-1", "load-x-2"}
    assert {task.session for stream in workload(num_sessions=0).streams(2, range(2)) for task in stream} == {None}


def test_shares_are_kept_and_every_resume_has_a_session_that_nobody_else_has() -> None:
    streams = workload("chat=6,ingest=1,resume=2,read=1", num_sessions=5).streams(4, range(500))
    tasks = [task for stream in streams for task in stream]
    counts = Counter(task.kind for task in tasks)
    for kind, share in ((Kind.CHAT, 0.6), (Kind.INGEST, 0.1), (Kind.RESUME, 0.2), (Kind.READ, 0.1)):
        assert counts[kind] / len(tasks) == pytest.approx(share, abs=0.03)
    resumed = [task.session for task in tasks if task.kind is Kind.RESUME]
    assert len(set(resumed)) == len(resumed)
    assert not set(resumed) & {task.session for task in tasks if task.kind is not Kind.RESUME}
    assert {task.text.split()[0] for task in tasks if task.kind is Kind.INGEST} == {"50"}


def test_popularity_falls_with_the_exponent_and_is_even_at_0() -> None:
    def counts(zipf: float) -> list[int]:
        (stream,) = workload(num_sessions=4, zipf=zipf).streams(1, range(4000))
        by_session = Counter(task.session for task in stream)
        return [by_session[f"load-x-{session}"] for session in range(4)]

    assert all(count == pytest.approx(1000, rel=0.1) for count in counts(0.0))
    first, *rest = counts(1.0)
    assert all(count == pytest.approx(first / rank, rel=0.15) for rank, count in enumerate(rest, start=2))


def test_arrivals_are_poisson_whatever_the_server_does() -> None:
    moments = poisson_arrivals(Random(1), rate=20.0, duration_seconds=200.0)
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    assert moments == sorted(moments)
    assert 0 < moments[0] < moments[-1] < 200
    assert len(moments) == pytest.approx(4000, rel=0.05)
    # The gaps of a Poisson process are exponential: their deviation is their mean.
    assert fmean((gap - fmean(gaps)) ** 2 for gap in gaps) ** 0.5 == pytest.approx(fmean(gaps), rel=0.05)


def test_an_open_loop_has_a_moment_for_every_task_and_the_same_seed_the_same_plan() -> None:
    plan = workload("chat=1,read=1", num_sessions=2).arrivals(5.0, 10.0)
    assert [task.due_seconds for task in plan] == poisson_arrivals(Random("0/arrivals"), 5.0, 10.0)
    assert plan == workload("chat=1,read=1", num_sessions=2).arrivals(5.0, 10.0)
    assert plan != workload("chat=1,read=1", num_sessions=2, seed=1).arrivals(5.0, 10.0)


@pytest.mark.parametrize("text", ["", "chat", "talk=1", "chat=0", "chat=-1", "chat=nan", "chat=inf", "chat=x"])
def test_shares_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Kind|share|float"):
        parse_shares(text)


def test_sessions_of_a_run_are_those_that_its_tasks_name() -> None:
    tasks = [
        Task(0, Kind.CHAT, "a", ""),
        Task(1, Kind.RESUME, "r", ""),
        Task(2, Kind.CHAT, None, ""),
        Task(3, Kind.READ, "a", ""),
    ]
    assert LoadSessions(tasks, 10, text_of).names == ("r", "a")

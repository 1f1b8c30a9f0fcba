"""The benches that load a server: whole, small, over real sockets."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.process_times import ProcessTimes
from bench.server_process import ServerProcess
from bench.serving.compare import ratios
from bench.serving.load_workload import Kind, Task
from bench.serving.resume import Sample, summarise_resume
from bench.serving.runner import Runner
from bench.serving.ticks import RequestTicks
from clients import AsyncClient
from tests.bench.running import run
from tests.redis_server import RedisServer
from tests.server_process import tiny_server

# The kernel's account of a process' threads.
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="processor time by thread needs Linux")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One sequence at a time, and one that waits."""
    folder = tmp_path_factory.mktemp("load")
    with tiny_server(folder, store="memory://", max_num_sequences="1", max_num_waiting="1") as server:
        yield server


def test_load_records_every_request_of_every_stream(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, picture = tmp_path / "load.json", tmp_path / "load.svg"
    size = ["--concurrency", "1,2", "--requests", "2", "--prompt-tokens", "20", "--max-tokens", "6"]
    options = ["--document-tokens", "60", "--goodput", "ttft=100", "e2e=1e-9", "--plot", str(picture)]
    document, _ = run(capsys, "load", "--model", str(model), *size, *options, "--json", str(path))
    one, two = document["levels"]
    assert (one["concurrency"], two["concurrency"]) == (1, 2)
    assert (two["num_requests"], two["num_failed"], two["num_refused"], two["goodput"]) == (4, 0, 0, 0.0)
    assert two["ttft_seconds"]["n"] == 4
    assert two["sessions"]["commit_seconds"]["n"] == 4
    assert sum((two["sessions"][f"resume_{tier}_seconds"] or {"n": 0})["n"] for tier in ("device", "host")) == 4
    ticks = [tick for tick in json.loads(path.read_text())["ticks"] if tick["concurrency"] == 2]
    assert sorted((tick["stream"], tick["number"]) for tick in ticks) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for tick in ticks:
        assert tick["num_completion_tokens"] == 6
        assert tick["sent_seconds"] < tick["chunk_seconds"][0] <= tick["chunk_seconds"][-1] <= tick["end_seconds"]
        assert tick["num_prompt_tokens"] > tick["num_cached_tokens"] > 60
    assert "tokens answered a second" in picture.read_text()


def test_an_open_loop_of_all_kinds_starts_cold_and_comes_at_its_moments(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "load.json"
    size = ["--rate", "12", "--duration", "2", "--prompt-tokens", "20", "--max-tokens", "6", "--sessions", "3"]
    mix = ["--mix", "chat=2,ingest=1,resume=2,read=2", "--document-tokens", "60", "--ingest-tokens", "40", "--cold"]
    document, _ = run(capsys, "load", "--model", str(model), *size, *mix, "--json", str(path))
    (level,) = document["levels"]
    ticks = json.loads(path.read_text())["ticks"]
    assert level["num_requests"] == len(ticks) > 10
    assert (level["num_failed"], level["num_refused"]) == (0, 0)
    assert set(level["kinds"]) == {"chat", "ingest", "resume", "read"}
    assert [tick["due_seconds"] for tick in ticks] == sorted(tick["due_seconds"] for tick in ticks)
    assert all(tick["sent_seconds"] >= tick["due_seconds"] for tick in ticks)
    ingested = [tick["num_prompt_tokens"] for tick in ticks if tick["kind"] == "ingest"]
    assert all(num_tokens >= 40 for num_tokens in ingested)
    # Only a fork that nobody has used since the server was killed is sure to be in the store and nowhere else.
    assert level["sessions"]["resume_store_seconds"]["n"] >= level["kinds"]["resume"]["num_answered"]


def test_beside_compares_the_gaps_of_the_same_chats_without_a_document_and_with_one(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--chats", "2", "--max-tokens", "5", "--rounds", "2", "--document-tokens", "30k"]
    document, _ = run(capsys, "beside", "--model", str(model), *size)
    gaps = document["itl_seconds"]
    # A token that ends no character is in no chunk of its own.
    assert all(0 < gaps[name]["n"] <= 2 * 2 * 4 for name in ("alone", "beside"))
    assert document["ratio"] == pytest.approx(gaps["beside"]["p99"] / gaps["alone"]["median"])
    assert document["document_tokens_per_second"] > 0


def test_a_document_that_ends_before_the_chats_beside_it_measures_nothing(model: Path) -> None:
    size = ["--chats", "2", "--max-tokens", "200", "--rounds", "1", "--document-tokens", "2k"]
    with pytest.raises(SystemExit, match="--document-tokens"):
        main(["beside", "--model", str(model), *size])


def test_a_server_without_room_refuses_and_the_others_are_answered(server: ServerProcess) -> None:
    async def test() -> list[RequestTicks]:
        async with AsyncClient(server.base_url) as client:
            runner = Runner(client, {"max_tokens": 100, "ignore_eos": True})
            return await runner.open_loop([Task(number, Kind.CHAT, None, "Hello", 0.0) for number in range(4)])

    records = asyncio.run(test())
    assert [ticks.number for ticks in records] == [0, 1, 2, 3]
    refused = [ticks for ticks in records if ticks.is_refused]
    assert len(refused) == 2
    assert all(ticks.error is not None and ticks.error.startswith("queue_full") for ticks in refused)
    assert all(ticks.error is None and ticks.chunk_seconds for ticks in records if not ticks.is_refused)


def test_a_session_has_one_writing_turn_at_a_time_and_waiting_for_it_is_no_latency(server: ServerProcess) -> None:
    async def test() -> list[RequestTicks]:
        async with AsyncClient(server.base_url) as client:
            runner = Runner(client, {"max_tokens": 20, "ignore_eos": True})
            return await runner.open_loop([Task(number, Kind.CHAT, "one", "Hello", 0.0) for number in range(3)])

    first, second, third = sorted(asyncio.run(test()), key=lambda ticks: ticks.sent_seconds)
    assert [ticks.error for ticks in (first, second, third)] == [None] * 3
    assert first.end_seconds <= second.sent_seconds < second.end_seconds <= third.sent_seconds
    assert third.late_seconds == third.sent_seconds


def test_a_request_that_fails_is_a_record_and_ends_nothing(server: ServerProcess) -> None:
    async def test() -> list[RequestTicks]:
        async with AsyncClient(server.base_url) as client:
            runner = Runner(client, {"max_tokens": 2, "ignore_eos": True})
            return await runner.closed_loop(
                [[Task(0, Kind.READ, "nobody", "Hello"), Task(1, Kind.CHAT, None, "Hello")]]
            )

    failed, answered = asyncio.run(test())
    assert failed.error is not None
    assert failed.error.startswith("session_not_found")
    assert not failed.is_refused
    assert answered.error is None


def test_latency_asks_for_one_answer_at_a_time(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--lengths", "10,200", "--requests", "2", "--max-tokens", "4"]
    document, _ = run(capsys, "latency", "--model", str(model), *size)
    short, long = document["lengths"]
    assert (short["prompt_num_tokens"], long["prompt_num_tokens"]) == (10, 200)
    assert [row["ttft_seconds"]["n"] for row in (short, long)] == [2, 2]
    assert long["input_tokens_per_second"] > short["input_tokens_per_second"]


@pytest.mark.redis
def test_resume_goes_on_from_every_tier_and_reads_the_text_again(
    model: Path, redis_server: RedisServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "resume.svg"
    size = ["--lengths", "300", "--rounds", "2", "--prefill-rounds", "1", "--redis", redis_server.url]
    document, _ = run(capsys, "resume", "--model", str(model), *size, "--plot", str(picture))
    counts = {row["way"]: row["ttft_seconds"]["n"] for row in document["results"]}
    assert counts == {"host": 2, "device": 2, "store local": 2, "store redis": 2, "prefill": 1}
    for row in document["results"]:
        if row["way"] == "prefill":
            assert row["ready_seconds"] is None
        else:
            assert 0 < row["ready_seconds"]["median"] < row["ttft_seconds"]["median"]
    assert "store redis" in picture.read_text()


def test_resuming_is_told_against_the_median_of_reading_again() -> None:
    samples = [Sample(100, "host", 0.5, 0.1), Sample(100, "host", 1.5, 0.2)]
    samples += [Sample(100, "prefill", seconds, None) for seconds in (3.0, 4.0, 9.0)]
    host, prefill = summarise_resume(samples)
    assert (host["way"], host["prefill_ratio"], prefill["prefill_ratio"]) == ("host", 4.0, 1.0)


def test_compare_sends_both_servers_the_same_in_turns(
    model: Path, server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "compare.json"
    other = ["--other-url", f"{server.base_url}/v1", "--concurrency", "2", "--rounds", "2"]
    size = ["--prompt-tokens", "10", "--max-tokens", "4", "--json", str(path)]
    document, printed = run(capsys, "compare", "--model", str(model), *other, *size)
    compared = document["compared"]
    assert {"ttft_seconds", "e2e_seconds", "output_tokens_per_second"} <= set(compared)
    assert all(row["ratio"] > 0 for row in compared.values())
    assert "ttft_seconds" in printed
    ticks = json.loads(path.read_text())["ticks"]
    asked = {
        name: [(tick["round"], tick["stream"], tick["num_prompt_tokens"]) for tick in ticks if tick["server"] == name]
        for name in ("ours", "other")
    }
    assert len(asked["ours"]) == 4
    assert asked["ours"] == asked["other"]


def test_ratios_are_medians_of_the_rounds_own() -> None:
    def summary(ttft: float, rate: float) -> dict[str, object]:
        missing = dict.fromkeys(("itl_seconds", "tpot_seconds", "e2e_seconds"))
        rates = {"requests_per_second": rate, "output_tokens_per_second": rate}
        return {"ttft_seconds": {"median": ttft}, **missing, **rates}

    ours = [summary(1.0, 4.0), summary(2.0, 4.0), summary(30.0, 4.0)]
    other = [summary(2.0, 2.0), summary(8.0, 4.0), summary(60.0, 1.0)]
    table = ratios(ours, other)
    assert table["ttft_seconds"] == {"ours": 2.0, "other": 8.0, "ratio": 0.5}
    assert table["requests_per_second"]["ratio"] == 2.0
    assert "itl_seconds" not in table


@needs_linux
def test_http_cost_tells_http_from_the_engine(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--concurrency", "4", "--max-tokens", "20", "--rounds", "2"]
    document, printed = run(capsys, "http_cost", "--model", str(model), *size)
    streams, whole = document["streams"], document["whole"]
    assert streams["http_seconds"] > 0 < whole["http_seconds"]
    assert streams["step_seconds"] > streams["engine_seconds"] > 0
    assert document["http_share"] > 0
    assert "streams" in printed


@needs_linux
def test_processor_time_is_told_by_thread(server: ServerProcess) -> None:
    before = ProcessTimes.of(server.pid)

    async def ask() -> None:
        async with AsyncClient(server.base_url) as client:
            await client.chat("Hello", max_tokens=20, ignore_eos=True)

    asyncio.run(ask())
    spent = ProcessTimes.of(server.pid) - before
    assert 0 < spent.main_seconds < 20
    assert 0 < spent.other_seconds < 20


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["load", "--goodput", "speed=1"], "--goodput"),
        (["load", "--stateless", "--document-tokens", "10"], "--document-tokens"),
        (["load", "--stateless", "--mix", "chat=1,read=1"], "--mix"),
        (["load", "--mix", "resume=1"], "--document-tokens"),
        (["load", "--mix", "talk=1"], "talk"),
        (["load", "--sessions", "0"], "--sessions"),
        (["load", "--rate", "0"], "not a rate"),
        (["load", "--cold", "--base-url", "http://127.0.0.1:9"], "--cold"),
        (["load", "--base-url", "http://127.0.0.1:9"], "127.0.0.1:9"),
    ],
)
def test_a_load_that_cannot_be_measured_is_refused_with_a_reason(
    model: Path, arguments: list[str], reason: str
) -> None:
    with pytest.raises(SystemExit, match=reason):
        main([*arguments, "--model", str(model)])

"""Whole benches, small, with a server of their own and the tiny model."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.__main__ import BENCHES, main
from bench.memory.kernels import RULES
from bench.products import MatrixProducts
from tests.bench.running import run
from tests.redis_server import RedisServer, redis_is_installed


def test_recall_asks_every_question_three_ways_across_a_kill(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recall.json"
    size = ["--lengths", "300,500", "--documents", "2", "--questions", "3"]
    output = ["--json", str(path), "--plot", str(tmp_path / "recall.png")]
    document, printed = run(capsys, "recall", "--model", str(model), *size, *output)
    assert (document["answered_by"], document["through"]) == ("restarted", "clients")
    overall = [(row["length"], row["condition"], row["n"]) for row in document["results"] if row["kind"] == "all"]
    conditions = ["on", "off", "swapped"]
    assert overall == [(length, condition, 6) for length in (300, 500) for condition in conditions]
    assert all(row["low"] <= row["share"] <= row["high"] for row in document["results"])
    records = json.loads(path.read_text())
    assert len(records["answers"]) == 2 * 2 * 3 * 3
    assert [reading["session"]["committed"] for reading in records["readings"]] == [True] * 4
    assert "memory on       all" in printed
    assert (tmp_path / "recall.png").stat().st_size > 0


def test_recall_can_be_asked_of_a_second_server_through_the_openai_package(
    model: Path, redis_server: RedisServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recall.json"
    size = ["--lengths", "300", "--documents", "2", "--questions", "4", "--facts", "4", "--overwritten", "0"]
    where = ["--store", redis_server.url, "--second-server", "--openai", "--writing", "--json", str(path)]
    document, _ = run(capsys, "recall", "--model", str(model), *size, *where)
    assert (document["answered_by"], document["through"]) == ("second process", "openai")
    answers = json.loads(path.read_text())["answers"]
    assert [answer["condition"] for answer in answers] == ["swapped"] * 8 + ["off"] * 8 + ["on"] * 8


def test_codecs_asks_the_same_of_every_codec(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "codecs.json"
    size = ["--lengths", "300", "--documents", "1", "--questions", "3", "--commit-tokens", "100", "--store-rounds", "2"]
    document, _ = run(capsys, "codecs", "--model", str(model), *size, "--json", str(path))
    codecs = ["none", "bf16", "int8"]
    costs, recall = document["costs"], document["recall"]
    assert [row["codec"] for row in costs] == [row["codec"] for row in recall] == codecs
    for sizes in ([row["num_bytes"] for row in costs], [row["snapshot_num_bytes"] for row in recall]):
        assert sizes[0] > sizes[1] > sizes[2]
    assert [row["accuracy"]["n"] for row in recall] == [3] * 3
    assert recall[0]["num_changed"] == 0
    records = json.loads(path.read_text())
    assert [answer["condition"] for answer in records["answers"]] == ["on"] * 3
    assert len(records["changed_answers"]) == sum(row["num_changed"] for row in recall)


def test_cost_is_of_snapshots_and_samples(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--length", "100", "--store-rounds", "2", "--threads", "1"]
    document, _ = run(capsys, "cost", *size, "--folder", str(tmp_path), "--model", str(model))
    assert document["memory_sample"]["share_of_prefill"] > 0
    assert document["store"]["snapshot_num_bytes"] > 0
    assert document["store"]["bare_save_seconds"] > 0


needs_redis = pytest.mark.skipif(not redis_is_installed(), reason="redis-server is not installed")


@pytest.mark.redis
@needs_redis
def test_store_compares_a_snapshots_way_with_that_of_plain_bytes(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--rounds", "1", "--large", "1m", "--large-rounds", "1"]
    document, _ = run(capsys, "store", "--model", str(model), *size)
    for cost in (*document["transfer"].values(), *document["large_transfer"].values()):
        seconds, plain_seconds = (
            cost["commit_seconds"] + cost["resume_seconds"],
            cost["set_seconds"] + cost["get_seconds"],
        )
        assert cost["ratio"] == pytest.approx(seconds / plain_seconds)
    num_bytes = document["large_transfer"]["fresh"]["snapshot_num_bytes"]
    assert document["large_transfer"]["fresh"]["num_parts"] == -(-num_bytes // 2**22) > 1
    memory = document["large_memory"]
    assert memory["snapshot_num_bytes"] == num_bytes
    assert memory["commit_ratio"] > 1
    assert memory["load_ratio"] > 1
    assert 0 < memory["load_pings"]["p99"] <= memory["load_pings"]["max"]


@pytest.mark.slow
@pytest.mark.redis
@needs_redis
def test_a_snapshot_of_300_mb_takes_half_its_size_more_and_holds_up_no_other_client(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--rounds", "3", "--large", "300m", "--large-rounds", "3"]
    document, _ = run(capsys, "store", "--model", str(model), *size)
    memory = document["large_memory"]
    assert memory["snapshot_num_bytes"] > 295_000_000
    assert memory["commit_ratio"] < 1.5
    assert memory["load_ratio"] < 1.5
    assert memory["commit_pings"]["n"] > 20
    assert max(memory["commit_pings"]["max"], memory["load_pings"]["max"]) < 0.1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["recall", "--documents", "1"], "at least 2"),
        (["recall", "--model", "nowhere"], "nowhere"),
        (["recall", "--second-server"], "--store"),
        (["recall", "--lengths", "100", "--questions", "5", "--facts", "4"], "too many"),
        (["recall", "--base-url", "http://127.0.0.1:9", "--store", "memory://"], "--store"),
        (["gpu_check", "--device", "cpu", "--parts", "speed"], "'speed'"),
        (["chain", "--marks", "2k"], "twice --document-tokens"),
        (["chain", "--marks", "9k,many"], "not a length"),
        (["load", "--corpus", "nowhere"], "no text in nowhere"),
        (["load", "--store", "tape://reel"], "the server ended with"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_a_reason(model: Path, arguments: list[str], reason: str) -> None:
    known = [] if "--model" in arguments else ["--model", str(model)]
    with pytest.raises(SystemExit, match=reason):
        main([*arguments, *known])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["latency", "--lengths", "16,many"], "--lengths: not a length: 'many'"),
        (["roofline", "--batch-sizes", "0"], "--batch-sizes: not a length: '0'"),
        (["roofline", "--pieces", "4"], "--pieces: not rows x tokens, like 4x256: '4'"),
        (["throughput", "--threads", "0"], "--threads: not a length: '0'"),
        (["load", "--requests", "0"], "--requests: not a length: '0'"),
        (["load", "--plot", "curve.foo"], "--plot: none of .png, .svg, .pdf: 'curve.foo'"),
    ],
)
def test_a_value_that_cannot_be_read_is_refused_with_its_option(
    capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("bench", BENCHES)
def test_the_help_of_each_bench_says_what_is_done_without_an_option(
    bench: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([bench, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert BENCHES[bench][1] in printed
    assert "default: " in printed


def test_a_chain_tells_norms_and_recall_at_every_mark(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--marks", "500,1k", "--document-tokens", "200", "--facts", "4", "--plot", str(tmp_path / "chain.png")]
    document, _ = run(capsys, "chain", "--model", str(model), *options)
    assert [row["num_tokens"] for row in document["marks"]] == [500, 1000]
    assert all(row["is_finite"] and len(row["memory_norms"]) == 2 for row in document["marks"])
    assert [row["recall"]["n"] for row in document["marks"]] == [4, 4]
    assert (tmp_path / "chain.png").stat().st_size > 0


def test_capacity_grows_with_passes_and_with_the_degree_of_the_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--key-widths", "8", "--degrees", "1,2", "--passes", "1,8", "--seeds", "1", "--max-pairs", "512"]
    document, _ = run(capsys, "capacity", *size, "--plot", str(tmp_path / "capacity.png"))
    pairs = {(each["network"], each["feature_degree"]): each["num_pairs"] for each in document["capacities"]}
    assert 1 <= pairs["matrix", 1]["1 pass"] < pairs["matrix", 1]["8 passes"] <= pairs["matrix", 1]["fitted"]
    assert pairs["matrix", 1]["8 passes"] < pairs["matrix", 2]["8 passes"] <= pairs["matrix", 2]["fitted"]
    assert [each["num_features"] for each in document["capacities"]] == [8, 45, 8, 8]
    assert 8 <= pairs["matrix", 1]["fitted"] < pairs["mlp", 1]["fitted"] < pairs["gated_mlp", 1]["fitted"]
    assert (tmp_path / "capacity.png").stat().st_size > 0


def test_kernels_times_the_chunk_form_beside_its_products_and_counts_what_the_formula_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--width", "32", "--length", "128", "--chunk-size", "8", "--naive-tokens", "2", "--turns", "1"]
    document, _ = run(capsys, "kernels", *size, "--threads", "1", "--json", str(tmp_path / "kernels.json"))
    shares = document["shares"]
    assert [each["rule"] for each in shares] == list(RULES)
    for each in shares:
        assert each["num_tokens"] == (16 if each["rule"] == "muon per token" else 128)
        assert each["flops"] == pytest.approx(each["formula_flops"], rel=0.02)
        assert each["share"] == pytest.approx(each["products_seconds"] / each["seconds"])
        assert each["naive_seconds_per_token"] > 0


def test_recorded_products_are_all_products_with_the_operations_that_torch_counts() -> None:
    left, right = torch.randn(3, 4, 5), torch.randn(3, 7, 5)

    def computation() -> None:
        product = left @ right.mT
        torch.baddbmm(product, left[..., :2], right[..., :2].mT, alpha=-1.0).square().sum()

    products = MatrixProducts.of(computation)
    with FlopCounterMode(display=False) as counter:
        computation()
    assert products.flops == counter.get_total_flops() == 2 * 3 * 4 * 7 * (5 + 2)
    assert products.num_calls == 2
    assert MatrixProducts.of(products.repeat).flops == products.flops


def test_omega_window_is_held_to_the_first_window(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--windows", "1,4", "--length", "64", "--decode-tokens", "2", "--turns", "1", "--threads", "1"]
    document, _ = run(capsys, "omega_window", *size, "--json", str(tmp_path / "omega_window.json"))
    first, second = document["costs"]
    assert (first["omega_window"], first["prefill_ratio"], first["decode_ratio"]) == (1, 1.0, 1.0)
    assert second["prefill_ratio"] == pytest.approx(second["prefill_seconds"] / first["prefill_seconds"])

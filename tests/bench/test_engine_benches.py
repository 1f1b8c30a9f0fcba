"""Whole benches of the engine without HTTP, small, on the tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.__main__ import main
from tests.bench.running import run


def test_a_profile_accounts_for_the_whole_step(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--batch-sizes", "3", "--document-tokens", "200", "--seconds", "0.8", "--threads", "1"]
    document, printed = run(capsys, "profile", "--model", str(model), *size)
    profiles = document["profiles"]
    assert [(each["name"], each["batch_size"]) for each in profiles] == [("prefill", 1), ("decode", 3)]
    for each in profiles:
        assert sum(each["parts"].values()) == pytest.approx(1.0)
        assert list(each["parts"].values()) == sorted(each["parts"].values(), reverse=True)
        assert each["seconds"] > 0
    prefill, decode = (each["parts"].keys() for each in profiles)
    assert {"projections", "feed-forward", "attention", "feature map"} <= prefill | decode
    assert "sampling" in decode - prefill
    assert "whole step" in printed


def test_throughput_counts_what_was_read_and_what_was_written(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--batch-sizes", "3", "--document-tokens", "100", "--seconds", "0.2", "--threads", "1"]
    document, _ = run(capsys, "throughput", "--model", str(model), *size, "--json", str(tmp_path / "throughput.json"))
    rows = document["throughput"]
    assert [(each["workload"], each["batch_size"]) for each in rows] == [("prefill", 3), ("decode", 3), ("mixed", 3)]
    for each in rows:
        assert (each["prompt_tokens_per_second"] > 0) == (each["workload"] != "decode")
        assert (each["generated_tokens_per_second"] > 0) == (each["workload"] != "prefill")
        assert 0 < each["model_share"] <= 1
    decode = rows[1]
    assert decode["generated_tokens_per_second"] == pytest.approx(3 / decode["step_seconds"])


def test_a_token_costs_and_a_snapshot_weighs_the_same_wherever_it_stands(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--positions", "10,64,1m", "--prefill-reference", "10", "--decode-reference", "64", "--read-to", "100"]
    rest = ["--prefill-tokens", "20", "--decode-tokens", "5", "--turns", "2", "--threads", "1"]
    path = tmp_path / "context_length.png"
    document, printed = run(capsys, "context_length", "--model", str(model), *size, *rest, "--plot", str(path))
    costs = document["costs"]
    assert [(cost["position"], cost["was_read"]) for cost in costs] == [(10, True), (60, True), (1_000_000, False)]
    assert len({cost["snapshot_num_bytes"] for cost in costs}) == 1
    assert (costs[0]["prefill_ratio"], costs[1]["decode_ratio"]) == (1.0, 1.0)
    assert all(cost[name] > 0 for cost in costs for name in ("prefill_seconds", "decode_seconds", "decode_ratio"))
    assert printed.count("set forward") == 1
    assert path.stat().st_size > 0


def test_a_reference_that_is_no_position_is_refused(model: Path) -> None:
    with pytest.raises(SystemExit, match="--prefill-reference"):
        main(["context_length", "--model", str(model), "--positions", "1k,10k"])

"""`python -m atlas_model.training` and its plot: every option does what it says, and what cannot be is refused."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch

from atlas_model.checkpoint import load_checkpoint
from atlas_model.training import evaluate, plot
from atlas_model.training.__main__ import main
from atlas_model.training.metrics import METRICS_FILE, read_metrics
from atlas_model.training.synthetic_prose import SyntheticProse
from tests.atlas_model.test_training_resume import assert_same
from tests.atlas_model.training_runs import measured, saved


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["training", *map(str, arguments)])
    main()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    directory = tmp_path / "corpus"
    directory.mkdir()
    for name in ("book.txt", "sherlock_holmes.txt"):
        sentences = [sentence.text for sentence in islice(SyntheticProse().passage(random.Random(0)), 400)]
        (directory / name).write_text("\n".join(sentences), encoding="utf-8")
    return directory


def test_the_command_trains_from_text_files_alone_and_leaves_a_checkpoint(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which the evaluation can read, on whichever book it is told is held out."""
    out = tmp_path / "smoke-model"
    weighted = ("--corpus", f"2:{corpus}", "--corpus", corpus)
    run(monkeypatch, *weighted, "--out", out, "--recipe", "smoke", "--scale", 0.1, "--evaluate-steps", 1)
    checkpoint = load_checkpoint(out)
    assert checkpoint.name == "smoke-model"
    ids = torch.tensor([checkpoint.chat_format.session_start(checkpoint.tokenizer)])
    assert checkpoint.model(ids).logits.isfinite().all()
    lines = read_metrics(out)
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["held_out_perplexity"] > 1 and 0 <= line["held_out_accuracy"] <= 1 for line in lines)
    capsys.readouterr()
    options = ("--lengths", "256", "--episodes", "1", "--held-out", "book.txt")
    monkeypatch.setattr("sys.argv", ["evaluate", "--model", str(out), "--corpus", str(corpus), *options])
    evaluate.main()
    assert json.loads(capsys.readouterr().out)["num_tokens"] == 256


@pytest.mark.timeout(240)
def test_a_smoke_run_that_is_killed_anywhere_and_resumed_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring on held-out text along the way, which changes nothing in the run, either."""
    scaled = ("--smoke", "--log-steps", 2)
    run(monkeypatch, *scaled, "--out", tmp_path / "whole")
    measuring = (*scaled, "--evaluate-steps", 10, "--evaluate-episodes", 2)
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "atlas_model.training", *map(str, measuring), "--out", str(killed)]
    with subprocess.Popen([*command, "--save-seconds", "0.2"]) as process:
        while not (killed / "training_state.pt").exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    run(monkeypatch, *measuring, "--out", killed, "--resume")
    assert_same(saved(killed), saved(tmp_path / "whole"))
    lines = measured(killed)
    assert [line for line in lines if "loss" in line] == measured(tmp_path / "whole")
    assert [line["step"] for line in lines if "held_out_perplexity" in line] == [10, 20]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--corpus is missing"),
        (["--smoke", "--recipe", "demo"], "--smoke has a recipe and text of its own"),
        (["--smoke", "--scale", "0"], "--scale must be positive"),
        (["--smoke", "--log-steps", "0"], "--log-steps: must be at least 1"),
        (["--smoke", "--resume"], "holds no saved state"),
        (["--smoke", "--start-from", "nowhere"], "nowhere is not a checkpoint"),
        (["--recipe", "nowhere.toml", "--corpus", "x"], r"nowhere.toml"),
        (["--corpus", "0:books"], "--corpus: CorpusConfig: weight of books must be positive"),
        (["--corpus", "nowhere"], "there is no folder nowhere"),
        (["--corpus", "CORPUS/book", "--evaluate-steps", "5"], "no held-out text in CORPUS/book"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_words(
    tmp_path: Path,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (corpus / "book").mkdir()
    (corpus / "book.txt").rename(corpus / "book" / "book.txt")
    with pytest.raises(SystemExit):
        run(monkeypatch, *(each.replace("CORPUS", str(corpus)) for each in arguments), "--out", tmp_path / "out")
    assert message.replace("CORPUS", str(corpus)) in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "--smoke", "--out", tmp_path, "--device", "cuda")
    assert "no CUDA device" in capsys.readouterr().err


def test_a_folder_that_holds_a_run_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--smoke", "--scale", 0.1, "--out", tmp_path)
    for arguments, message in (
        ((), "holds a run already"),
        (("--resume", "--seed", 1), "run.seed was 0 and is 1"),
        (("--resume", "--start-from", tmp_path), "--start-from begins a new run"),
    ):
        with pytest.raises(SystemExit):
            run(monkeypatch, "--smoke", "--scale", 0.1, "--out", tmp_path, *arguments)
        assert message in capsys.readouterr().err


def test_the_metrics_of_a_run_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f'{{"step": {step}, "tokens": {step * 64}, "loss": 2.0, "lr": 0.1}}\n' for step in (1, 2)]
    held_out = '{"step": 2, "tokens": 128, "held_out_accuracy": 0.5}\n'
    (tmp_path / METRICS_FILE).write_text("".join([*lines, held_out, '{"step": 3, "tok']), encoding="utf-8")
    picture = tmp_path / "pictures" / "run.png"
    monkeypatch.setattr("sys.argv", ["plot", str(tmp_path), "--out", str(picture)])
    plot.main()
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_metrics_is_not_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["plot", str(tmp_path), "--out", str(tmp_path / "run.png")])
    with pytest.raises(SystemExit):
        plot.main()
    assert f"{tmp_path / METRICS_FILE} is missing or empty" in capsys.readouterr().err


def test_a_plot_without_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit, match=r"pip install 'atlas-serve\[bench\]'"):
        plot.draw_metrics([{"tokens": 1, "loss": 2.0}], tmp_path / "run.png")

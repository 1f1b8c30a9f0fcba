"""The training loop: it learns, it resumes exactly, and what its command leaves behind is a checkpoint."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from atlas_model.checkpoint import load_checkpoint
from atlas_model.model import AtlasModel
from atlas_model.text import ChatFormat
from atlas_model.training.__main__ import main
from atlas_model.training.evaluate import evaluate, held_out_episodes
from atlas_model.training.loop import METRICS_FILE, Corpus, Processes, Trainer
from atlas_model.training.optimizers import Muon
from atlas_model.training.recipe import RECIPES, Recipe
from atlas_model.training.synthetic_prose import SyntheticProse
from tests.atlas_model.tokenizers import small_tokenizer

SMOKE = RECIPES["smoke"]


def trainer(
    directory: Path, recipe: Recipe = SMOKE, seed: int = 0, autocasts: bool | None = None, device: str = "cpu"
) -> Trainer:
    recipe = replace(recipe, model=replace(recipe.model, vocab_size=small_tokenizer().vocab_size))
    corpus = Corpus(SyntheticProse(), small_tokenizer(), ChatFormat())
    return Trainer(recipe, corpus, directory, seed, torch.float32, autocasts=autocasts, device=device)


def say_nothing(line: str) -> None:
    del line


def test_loss_falls_and_metrics_are_written(tmp_path: Path) -> None:
    stages = (replace(SMOKE.stages[0], num_steps=40),)
    run = trainer(tmp_path, replace(SMOKE, stages=stages, max_lr=5e-3))
    run.run(save_seconds=1e9, report=say_nothing, log_steps=10)
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert lines[-1]["tokens"] == 40 * 4 * 64


def test_bfloat16_products_lead_nearly_where_float32_ones_do(tmp_path: Path) -> None:
    losses = {}
    for autocasts in (False, True):
        run = trainer(tmp_path / str(autocasts), autocasts=autocasts)
        losses[autocasts] = run.train_step()["loss"]
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], rel=0.01)


@pytest.mark.gpu
def test_a_run_on_a_gpu_loses_what_one_on_the_cpu_does(tmp_path: Path) -> None:
    runs = [trainer(tmp_path / device, autocasts=False, device=device) for device in ("cpu", "cuda")]
    for _ in range(3):
        cpu, gpu = (run.train_step()["loss"] for run in runs)
        assert gpu == pytest.approx(cpu, rel=1e-3)
    runs[1].save()
    assert trainer(tmp_path / "cuda", device="cuda").resume()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["training", "--corpus", str(tmp_path), "--out", str(tmp_path), "--device", "cuda"])
    with pytest.raises(SystemExit):
        main()
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("stop_at", [5, 15])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path: Path, stop_at: int) -> None:
    """Also in the second stage, where rows carry their state from segment to segment."""
    whole = trainer(tmp_path / "whole")
    for _ in range(18):
        whole.train_step()
    first = trainer(tmp_path / "parts")
    for _ in range(stop_at):
        first.train_step()
    first.save()
    second = trainer(tmp_path / "parts")
    assert second.resume()
    for _ in range(18 - stop_at):
        second.train_step()
    assert second.num_tokens == whole.num_tokens
    expected = whole.model.state_dict()
    assert all(torch.equal(each, expected[name]) for name, each in second.model.state_dict().items())


def test_there_is_nothing_to_resume_in_an_empty_folder(tmp_path: Path) -> None:
    assert not trainer(tmp_path).resume()


def test_rows_that_do_not_split_over_the_processes_are_refused(tmp_path: Path) -> None:
    corpus = Corpus(SyntheticProse(), small_tokenizer(), ChatFormat())
    with pytest.raises(ValueError, match="3 processes"):
        Trainer(SMOKE, corpus, tmp_path, 0, torch.float32, Processes(0, 3))


def test_learning_rate_warms_up_holds_and_ends_near_zero() -> None:
    recipe = replace(SMOKE, num_warmup_steps=4, decay_share=0.5, max_lr=1.0)
    rates = [recipe.lr(step) for step in range(recipe.num_steps)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[10] == 1.0
    assert rates[15] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.2


def test_an_untrained_model_answers_at_chance_in_the_evaluation() -> None:
    config = replace(SMOKE.model, vocab_size=small_tokenizer().vocab_size)
    model = AtlasModel(config).eval()
    corpus = Corpus(SyntheticProse(), small_tokenizer(), ChatFormat())
    episodes = replace(held_out_episodes(512), num_facts=(4, 4), num_questions=(4, 4))
    result = evaluate(model, corpus, episodes, num_episodes=3)
    assert 6 <= sum(result.scores.num_asked.values()) <= 12
    assert result.scores.accuracy < 0.2
    assert result.prose_perplexity > 50


def test_the_command_trains_from_text_files_alone_and_leaves_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    sentences = [sentence.text for sentence in islice(SyntheticProse().passage(random.Random(0)), 400)]
    (corpus / "book.txt").write_text("\n".join(sentences), encoding="utf-8")
    out = tmp_path / "smoke-model"
    arguments = ["training", "--corpus", str(corpus), "--out", str(out), "--recipe", "smoke", "--scale", "0.1"]
    monkeypatch.setattr("sys.argv", arguments)
    main()
    checkpoint = load_checkpoint(out)
    assert checkpoint.name == "smoke-model"
    assert (
        checkpoint.model(torch.tensor([checkpoint.chat_format.session_start(checkpoint.tokenizer)]))
        .logits.isfinite()
        .all()
    )


def test_a_run_can_start_from_another_models_weights(tmp_path: Path) -> None:
    first, second = trainer(tmp_path / "first"), trainer(tmp_path / "second", seed=1)
    first.train_step()
    ids = torch.arange(50)[None]
    with torch.inference_mode():
        assert not torch.equal(second.model(ids).logits, first.model(ids).logits)
        second.start_from(first.model)
        assert torch.equal(second.model(ids).logits, first.model(ids).logits)


def test_muon_is_torchs_but_for_the_dtype_of_its_iteration() -> None:
    torch.manual_seed(0)
    start = [torch.randn(24, 8), torch.randn(8, 24)]
    ours, theirs = ([torch.nn.Parameter(each.clone()) for each in start] for _ in range(2))
    mine = Muon([{"params": ours}], lr=0.1, weight_decay=0.5, dtype=torch.float32)
    reference = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for parameter, same in zip(ours, theirs, strict=True):
            parameter.grad = torch.randn_like(parameter)
            same.grad = parameter.grad.clone()
        mine.step()
        reference.step()
    for before, parameter, same in zip(start, ours, theirs, strict=True):
        moved, differs = (parameter - before).detach().norm(), (parameter - same).detach().norm()
        assert float(differs / moved) < 0.02

"""The training loop: it learns, in either precision, from any start; what moves the weights; what is measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atlas_model.model import AtlasModel
from atlas_model.text import ChatFormat
from atlas_model.training.evaluate import evaluate, held_out_episodes
from atlas_model.training.loop import Corpus
from atlas_model.training.metrics import METRICS_FILE
from atlas_model.training.optimizers import Muon
from atlas_model.training.processes import Processes
from atlas_model.training.synthetic_prose import SyntheticProse
from tests.atlas_model.tokenizers import small_tokenizer
from tests.atlas_model.training_runs import SMOKE, say_nothing, trainer


def test_loss_falls_and_metrics_are_written(tmp_path: Path) -> None:
    stages = (replace(SMOKE.stages[0], num_steps=40, memory_chunk_sizes=None),)
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


def test_rows_that_do_not_split_over_the_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 processes cannot share 4 rows"):
        trainer(tmp_path, processes=Processes(0, 3))


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

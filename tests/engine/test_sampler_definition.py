"""A vocabulary of some size: whatever is asked, what is drawn is what the definition says, by either ranking."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.sampling.ranking import SortedRanking
from engine.sampling.sampler import Draw, Sampler, uniform
from engine.sampling.sampling_params import SamplingParams

VOCAB_SIZE = 700
END = 2
SILENT = (0, 1, 2, 600)
NUM_ROWS = 24


@pytest.fixture(params=["binned", "sorted"])
def ranking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What draws on a CPU, and what draws on any other device."""
    if request.param == "sorted":
        monkeypatch.setattr("engine.sampling.sampler.BinnedRanking", SortedRanking)


def reference(row: Tensor, draw: Draw) -> int:
    """The definition, one token after the other."""
    scores = row.double().tolist()
    for token_id in SILENT:
        if token_id != END or not draw.can_end:
            scores[token_id] = float("-inf")
    ranked = sorted(range(VOCAB_SIZE), key=lambda token_id: -scores[token_id])[: draw.params.top_k or VOCAB_SIZE]
    peak = scores[ranked[0]]
    weights = [math.exp((scores[token_id] - peak) / draw.params.temperature) for token_id in ranked]
    weights = [weight for weight in weights if weight >= draw.params.min_p]
    ranked = ranked[: len(weights)]
    if draw.params.top_p == 1 and draw.params.min_p == 0 and (draw.params.top_k or VOCAB_SIZE) >= VOCAB_SIZE:
        in_order_of_ids = sorted(zip(ranked, weights, strict=True))
        ranked, weights = [token_id for token_id, _ in in_order_of_ids], [weight for _, weight in in_order_of_ids]
    mass = sum(weights)
    kept, before = [], 0.0
    for token_id, weight in zip(ranked, weights, strict=True):
        if before < draw.params.top_p * mass:
            kept.append((token_id, weight))
        before += weight
    target = uniform(draw.seed, draw.position) * sum(weight for _, weight in kept)
    cumulative = itertools.accumulate(weight for _, weight in kept)
    return next((i for (i, _), reached in zip(kept, cumulative, strict=True) if reached > target), kept[-1][0])


def rows_of(kind: str) -> Tensor:
    """float32: `peaked` draws come from the first candidates, `flat` ones from all of the vocabulary; `tied` ones have
    a handful of values, as logits of few bits have."""
    logits = torch.randn(NUM_ROWS, VOCAB_SIZE, generator=torch.Generator().manual_seed(3))
    if kind == "tied":
        return (logits * 2).round()
    return logits * {"peaked": 4.0, "middling": 1.8, "flat": 0.1}[kind]


def draws_of(**params: Any) -> list[Draw]:
    return [
        Draw(SamplingParams(temperature=(1.0, 0.7)[row % 2], **params), 5, row, can_end=row % 3 > 0)
        for row in range(NUM_ROWS)
    ]


@pytest.mark.parametrize("kind", ["peaked", "middling", "flat", "tied"])
@pytest.mark.parametrize("top_k", [None, 1, 50, 90, 600, 10 * VOCAB_SIZE])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 1e-9])
@pytest.mark.parametrize("min_p", [0.0, 0.1])
@pytest.mark.usefixtures("ranking")
def test_every_draw_is_what_the_definition_says(kind: str, top_k: int | None, top_p: float, min_p: float) -> None:
    logits = rows_of(kind)
    draws = draws_of(top_k=top_k, top_p=top_p, min_p=min_p)
    drawn = Sampler(VOCAB_SIZE, END, SILENT, torch.device("cpu")).sample(logits, draws).token_ids
    assert drawn == [reference(row, draw) for row, draw in zip(logits, draws, strict=True)]


def test_logits_of_64_bits_draw_what_the_same_ones_of_32_bits_do() -> None:
    sampler = Sampler(VOCAB_SIZE, END, SILENT, torch.device("cpu"))
    draws = [Draw(SamplingParams(top_p=(1.0, 0.9)[row % 2]), 5, row, can_end=False) for row in range(NUM_ROWS)]
    for kind in ("peaked", "middling", "flat", "tied"):
        as_64_bits = sampler.sample(rows_of(kind).double(), draws)
        assert sampler.sample(rows_of(kind), draws) == as_64_bits


def test_rows_of_all_kinds_draw_together_what_they_draw_alone() -> None:
    sampler = Sampler(VOCAB_SIZE, END, SILENT, torch.device("cpu"))
    rows = torch.stack([rows_of(kind)[number] for kind in ("peaked", "flat", "tied") for number in range(6)])
    rows[4, 9] = torch.nan
    draws = [
        Draw(SamplingParams(temperature=(0.0, 1.0)[row % 2], top_p=(1.0, 0.9)[row % 5 == 0]), row, 9, can_end=True)
        for row in range(len(rows))
    ]
    together = sampler.sample(rows, draws).token_ids
    assert together == [sampler.sample(rows[i : i + 1], [draws[i]]).token_ids[0] for i in range(len(rows))]
    assert [row for row, token_id in enumerate(together) if token_id is None] == [4]


def test_a_row_with_fewer_tokens_that_may_be_said_than_candidates_draws_one_of_them() -> None:
    logits = torch.full((NUM_ROWS, VOCAB_SIZE), -torch.inf)
    logits[:, 100:105] = 1.0
    # What is infinite comes from nowhere but the sampler's own filter.
    finite = logits.clamp(min=-1e30)
    draws = [Draw(SamplingParams(), 1, row, can_end=True) for row in range(NUM_ROWS)]
    drawn = Sampler(VOCAB_SIZE, END, SILENT, torch.device("cpu")).sample(finite, draws).token_ids
    assert set(drawn) == {100, 101, 102, 103, 104}


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["peaked", "middling", "flat", "tied"])
def test_a_cuda_device_draws_and_tells_what_the_cpu_does(kind: str) -> None:
    logits = rows_of(kind)
    draws = [
        *draws_of(top_k=90, logprobs=2)[:8],
        *draws_of(top_p=0.9, min_p=0.01)[8:16],
        *draws_of(logprobs=0)[16:],
    ]
    on_cpu, on_device = (
        Sampler(VOCAB_SIZE, END, SILENT, torch.device(device)).sample(logits.to(device), draws)
        for device in ("cpu", "cuda")
    )
    assert on_device.token_ids == on_cpu.token_ids
    for row, expected in on_cpu.logprobs.items():
        actual = on_device.logprobs[row]
        assert actual.logprob == pytest.approx(expected.logprob, abs=1e-9)
        assert [value for _, value in actual.top] == pytest.approx([value for _, value in expected.top], abs=1e-9)

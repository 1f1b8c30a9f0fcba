"""Decode steps, prefill pieces and draws, each timed beside its limit: see `bench.roofline`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from atlas_model.model import AtlasModel
from atlas_model.traffic import Traffic, decode_traffic, prefill_traffic
from bench.clock import median_ratio, seconds_in_turns
from bench.products import MatrixProducts
from bench.state_traffic import StateTraffic
from bench.stepper import Stepper, chunk_period, phases
from engine.sampler import Draw, Sampler
from engine.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class StepCost:
    """num_tokens: of a row's piece; None is decode. Seconds: medians over the turns, of decode a step's mean in each.

    limit_seconds = products_seconds + state_seconds. factor: median of the turns' seconds over limit.
    products_flops, num_bytes_read, num_bytes_written: what the limit is made of.
    """

    batch_size: int
    num_tokens: int | None
    is_aligned: bool
    seconds: float
    products_seconds: float
    state_seconds: float
    limit_seconds: float
    factor: float
    tokens_per_second: float
    products_flops: int
    num_products: int
    num_bytes_read: float
    num_bytes_written: float


@dataclass(frozen=True, slots=True)
class SamplingCost:
    """Medians of a call for one token of every row: the best one, and one that is drawn."""

    batch_size: int
    greedy_seconds: float
    drawn_seconds: float


def measure_decode(
    model: AtlasModel, batch_size: int, num_turns: int, device: torch.device, *, is_aligned: bool
) -> StepCost:
    """A step of all rows, over whole chunks."""
    stepper = Stepper(model, phases(model, batch_size, is_aligned=is_aligned), device)
    products = dense_products(model, batch_size)
    traffic = decode_traffic(model.config) * batch_size
    period = chunk_period(model)
    calls: list[Callable[[], object]] = [stepper.decode, products.repeat, StateTraffic(traffic, device).move]
    seconds = [_means(each, period) for each in seconds_in_turns(calls, num_turns * period, device)]
    return _cost(batch_size, None, is_aligned, seconds, products, traffic)


def dense_products(model: AtlasModel, batch_size: int) -> MatrixProducts:
    """The products by weights of a step of all rows."""
    state = model.initial_state(batch_size)
    token_ids = torch.zeros_like(state.position)
    return MatrixProducts.of(lambda: model.step(token_ids, state), _weights(model)).dense()


def measure_prefill(
    model: AtlasModel, batch_size: int, num_tokens: int, num_turns: int, device: torch.device, *, is_aligned: bool
) -> StepCost:
    """A piece of `num_tokens` for each row. That must be whole chunks: the rows then stand in theirs as they did
    when the next turn begins."""
    stepper = Stepper(model, phases(model, batch_size, is_aligned=is_aligned), device)
    token_ids = torch.zeros((batch_size, num_tokens), dtype=torch.int64, device=device)
    products = MatrixProducts.of(lambda: model(token_ids, logits="last"), _weights(model))
    traffic = prefill_traffic(model.config) * batch_size
    calls: list[Callable[[], object]] = [
        partial(stepper.prefill, num_tokens),
        products.repeat,
        StateTraffic(traffic, device).move,
    ]
    seconds = seconds_in_turns(calls, num_turns, device)
    return _cost(batch_size, num_tokens, is_aligned, seconds, products, traffic)


def measure_sampling(model: AtlasModel, batch_size: int, num_turns: int, device: torch.device) -> SamplingCost:
    vocab_size = model.config.vocab_size
    logits = torch.randn((batch_size, vocab_size), dtype=model.embedding.weight.dtype, device=device)
    sampler = Sampler(vocab_size, end_token_id=0, silent_token_ids=[], device=device)

    def sample(temperature: float) -> None:
        params = SamplingParams(temperature=temperature)
        sampler.sample(logits, [Draw(params, row, row, can_end=True) for row in range(batch_size)])

    greedy, drawn = seconds_in_turns([partial(sample, 0.0), partial(sample, 1.0)], num_turns, device)
    return SamplingCost(batch_size, median(greedy), median(drawn))


def _weights(model: AtlasModel) -> list[Tensor]:
    """The matrices that tokens are multiplied by; the memory's start and the features' projection have a head each."""
    return [each for each in model.parameters() if each.ndim == 2]


def _means(seconds: list[float], period: int) -> list[float]:
    return [sum(seconds[start : start + period]) / period for start in range(0, len(seconds), period)]


def _cost(
    batch_size: int,
    num_tokens: int | None,
    is_aligned: bool,
    seconds: list[list[float]],
    products: MatrixProducts,
    traffic: Traffic,
) -> StepCost:
    step, alone, state = seconds
    limits = [products_seconds + state_seconds for products_seconds, state_seconds in zip(alone, state, strict=True)]
    return StepCost(
        batch_size=batch_size,
        num_tokens=num_tokens,
        is_aligned=is_aligned,
        seconds=median(step),
        products_seconds=median(alone),
        state_seconds=median(state),
        limit_seconds=median(limits),
        factor=median_ratio(step, limits),
        tokens_per_second=batch_size * (num_tokens or 1) / median(step),
        products_flops=products.flops,
        num_products=products.num_calls,
        num_bytes_read=traffic.num_bytes_read,
        num_bytes_written=traffic.num_bytes_written,
    )

"""Decode steps, prefill pieces and draws, each timed beside its limits: see `bench.engine.roofline`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from atlas_model.model import AtlasModel
from atlas_model.sizes import decode_flops_per_token, logits_flops, prefill_flops_per_token
from atlas_model.traffic import Traffic, decode_traffic, prefill_traffic
from bench.clock import median_ratio, seconds_in_turns
from bench.engine.machine import Machine
from bench.engine.plain_traffic import PlainTraffic
from bench.engine.stepper import Stepper, chunk_period, phases
from bench.products import MatrixProducts
from engine.device.decode_steps import NativeStep
from engine.sampling.sampler import Draw, Sampler
from engine.sampling.sampling_params import SamplingParams

_SAMPLING = {
    "greedy": SamplingParams(temperature=0.0),
    "drawn": SamplingParams(),
    "top_p 0.95": SamplingParams(top_p=0.95),
    "top_k 50": SamplingParams(top_k=50),
}


@dataclass(frozen=True, slots=True)
class StepCost:
    """num_tokens: of a row's piece; None is decode. Seconds: medians over the turns, of decode a step's mean in each.

    products_seconds: by torch's operators; native_products_seconds: by the native kernels, None of steps by torch.
    limit_seconds: the shorter of the two and state_seconds. factor: median of the turns' seconds over limit.
    products_flops, state_num_bytes_read and _written: what the limit is made of.
    roof_seconds: see `bench.engine.roofline`; flops and num_bytes, of parameters and state, are counted by the
        configuration.
    """

    batch_size: int
    num_tokens: int | None
    is_aligned: bool
    seconds: float
    products_seconds: float
    native_products_seconds: float | None
    state_seconds: float
    limit_seconds: float
    factor: float
    roof_seconds: float
    tokens_per_second: float
    num_products: int
    products_flops: int
    state_num_bytes_read: float
    state_num_bytes_written: float
    flops: float
    num_bytes: float


@dataclass(frozen=True, slots=True)
class SamplingCost:
    """Medians of a call for one token of every row, by what the rows ask for, of flat logits, whose draws come from all
    of the vocabulary."""

    batch_size: int
    seconds: dict[str, float]


def measure_decode(
    model: AtlasModel, batch_size: int, machine: Machine, *, is_aligned: bool, native_kernels: str = "auto"
) -> StepCost:
    """A step of all rows, over whole chunks. native_kernels: as in EngineConfig."""
    stepper = Stepper(model, phases(model, batch_size, is_aligned=is_aligned), machine.device, native_kernels)
    native = stepper.step.decoder if isinstance(stepper.step, NativeStep) else None
    return _measure(
        model,
        batch_size,
        machine,
        step=stepper.decode,
        num_tokens=None,
        is_aligned=is_aligned,
        products=dense_products(model, batch_size),
        native_products=None if native is None else partial(native.multiply, batch_size),
        traffic=decode_traffic(model.config) * batch_size,
        flops=batch_size * decode_flops_per_token(model.config),
    )


def measure_prefill(
    model: AtlasModel, batch_size: int, num_tokens: int, machine: Machine, *, is_aligned: bool
) -> StepCost:
    """A piece of `num_tokens` for each row. That must be whole chunks: the rows then stand in theirs as they did when
    the next turn begins."""
    stepper = Stepper(model, phases(model, batch_size, is_aligned=is_aligned), machine.device)
    token_ids = torch.zeros((batch_size, num_tokens), dtype=torch.int64, device=machine.device)
    all_logits, last_logits = num_tokens * logits_flops(model.config), logits_flops(model.config)
    return _measure(
        model,
        batch_size,
        machine,
        step=partial(stepper.prefill, num_tokens),
        num_tokens=num_tokens,
        is_aligned=is_aligned,
        products=MatrixProducts.of(lambda: model(token_ids, logits="last"), _weights(model)),
        native_products=None,
        traffic=prefill_traffic(model.config) * batch_size,
        flops=batch_size * (num_tokens * prefill_flops_per_token(model.config) - all_logits + last_logits),
    )


def measure_sampling(model: AtlasModel, batch_size: int, machine: Machine) -> SamplingCost:
    vocab_size = model.config.vocab_size
    logits = torch.randn((batch_size, vocab_size), dtype=model.embedding.weight.dtype, device=machine.device)
    sampler = Sampler(vocab_size, end_token_id=0, silent_token_ids=[], device=machine.device)

    def sample(params: SamplingParams) -> None:
        sampler.sample(logits, [Draw(params, row, row, can_end=True) for row in range(batch_size)])

    calls = [partial(sample, params) for params in _SAMPLING.values()]
    turns = seconds_in_turns(calls, machine.num_turns, machine.device)
    return SamplingCost(batch_size, {name: median(each) for name, each in zip(_SAMPLING, turns, strict=True)})


def dense_products(model: AtlasModel, batch_size: int) -> MatrixProducts:
    """The products by weights of a step of all rows."""
    state = model.initial_state(batch_size)
    token_ids = torch.zeros_like(state.position)
    return MatrixProducts.of(lambda: model.step(token_ids, state), _weights(model)).dense()


def _weights(model: AtlasModel) -> list[Tensor]:
    """What tokens are multiplied by, parameters or rounded copies of them: the matrices. Of the memory's start and of
    the features' projection there is one for each head."""
    return [each for each in (*model.parameters(), *model.buffers()) if each.ndim == 2]


def _measure(
    model: AtlasModel,
    batch_size: int,
    machine: Machine,
    *,
    step: Callable[[], object],
    num_tokens: int | None,
    is_aligned: bool,
    products: MatrixProducts,
    native_products: Callable[[], object] | None,
    traffic: Traffic,
    flops: float,
) -> StepCost:
    parameters = Traffic(float(sum(each.nbytes for each in model.parameters())), 0.0)
    everything = parameters + traffic
    calls: list[Callable[[], object]] = [
        step,
        products.repeat,
        PlainTraffic(traffic, machine.device).move,
        PlainTraffic(everything, machine.device).move,
    ]
    if native_products is not None:
        calls.append(native_products)
    num_steps = chunk_period(model) if num_tokens is None else 1
    turns = seconds_in_turns(calls, machine.num_turns * num_steps, machine.device)
    whole, alone, state, moving, *natives = (_means(each, num_steps) for each in turns)
    shorter = [min(each) for each in zip(alone, *natives, strict=True)]
    limits = [products_seconds + state_seconds for products_seconds, state_seconds in zip(shorter, state, strict=True)]
    return StepCost(
        batch_size=batch_size,
        num_tokens=num_tokens,
        is_aligned=is_aligned,
        seconds=median(whole),
        products_seconds=median(alone),
        native_products_seconds=median(natives[0]) if natives else None,
        state_seconds=median(state),
        limit_seconds=median(limits),
        factor=median_ratio(whole, limits),
        roof_seconds=max(flops / machine.product_rate(products.dtype), median(moving)),
        tokens_per_second=batch_size * (num_tokens or 1) / median(whole),
        num_products=products.num_calls,
        products_flops=products.flops,
        state_num_bytes_read=traffic.num_bytes_read,
        state_num_bytes_written=traffic.num_bytes_written,
        flops=flops,
        num_bytes=everything.num_bytes_read + everything.num_bytes_written,
    )


def _means(seconds: list[float], size: int) -> list[float]:
    """Of each `size` successive ones."""
    return [sum(seconds[start : start + size]) / size for start in range(0, len(seconds), size)]

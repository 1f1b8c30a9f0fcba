"""Samples of a session's memory: taken on the way, bounded, carried along, and without a trace in what is served."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from atlas_model.telemetry import sample_memory
from engine.config import EngineConfig
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import Sequence, SequenceState
from engine.snapshots.memory_samples import (
    MAX_SAMPLES,
    NO_SAMPLES,
    MemorySample,
    MemorySamples,
    pack_samples,
    unpack_samples,
)
from tests.engine.harness import SMALL, answer, assert_same_session, new_core, prompt, run, tiny
from tests.engine.snapshot_cases import random_samples, tiny_config

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
TEXT = list(range(20, 120)) * 2


def sampling(num_tokens: int) -> EngineConfig:
    return replace(SMALL, memory_sample_tokens=num_tokens)


def fed(num_tokens: int, token_ids: list[int], state: SequenceState | None = None) -> SequenceState:
    return answer(new_core(sampling(num_tokens)), Sequence("fed", token_ids, state=state)).state


def positions(samples: MemorySamples) -> list[int]:
    return [sample.position for sample in samples.samples]


def test_what_is_served_is_the_same_bits_with_samples_and_without() -> None:
    asked = {"short": prompt("hello"), "long": prompt("where is the ball? " * 6)}
    answers = []
    for num_tokens in (0, 1):
        core = new_core(sampling(num_tokens))
        answers.append(run(core, *(Sequence(name, token_ids, GREEDY) for name, token_ids in asked.items())))
    without, sampled = answers
    assert not without["long"].state.memory_samples.samples
    assert sampled["long"].state.memory_samples.samples
    for name in asked:
        assert sampled[name].token_ids == without[name].token_ids
        assert_same_session(sampled[name].state, without[name].state, tolerance=0)


def test_a_sample_is_of_the_state_before_a_piece_and_at_least_so_many_tokens_after_the_last() -> None:
    state = fed(50, TEXT)
    # Pieces are up to 32 tokens long and end where a chunk of 5 does.
    assert positions(state.memory_samples) == [60, 120, 180]
    model = tiny().model
    before = model(torch.tensor([TEXT[:120]])).state
    expected = sample_memory(model, before, torch.tensor(TEXT[120:150]))
    assert expected is not None
    for layer, other in zip(state.memory_samples.samples[1].layers, expected, strict=True):
        assert layer.norm == pytest.approx(other.norm, rel=1e-6)
        assert layer.surprise == pytest.approx(other.surprise, rel=1e-6)
        assert layer.update_norm == pytest.approx(other.update_norm, rel=1e-6)


def test_a_session_that_goes_on_keeps_its_samples_and_adds_to_them() -> None:
    first = fed(50, TEXT)
    second = fed(50, TEXT, first)
    assert second.memory_samples.samples[:3] == first.memory_samples.samples
    assert positions(second.memory_samples) == [60, 120, 180, 230, 290, 350]
    assert fed(0, TEXT, first).memory_samples == first.memory_samples


def test_samples_are_bounded_and_span_a_session_of_any_length_evenly() -> None:
    samples, taken = NO_SAMPLES, 0
    for position in range(10, 1_000_000, 10):
        if samples.is_due(position, 100):
            samples = samples.with_sample(MemorySample(position, 0.0, ()), 100)
            taken += 1
            assert len(samples.samples) <= MAX_SAMPLES
    assert taken < 64 * 10
    assert len(samples.samples) > MAX_SAMPLES // 2
    assert positions(samples)[0] == 100
    gaps = {later - earlier for earlier, later in pairwise(positions(samples))}
    assert gaps == {samples.num_tokens_apart}


def test_another_setting_does_not_bring_samples_closer_than_those_that_are_there() -> None:
    samples = NO_SAMPLES.with_sample(MemorySample(1000, 0.0, ()), 1000)
    assert not samples.is_due(1999, 10)
    assert samples.is_due(2000, 10)
    assert not samples.is_due(2000, 5000)
    assert not samples.is_due(10**9, 0)


def test_samples_come_back_from_their_bytes_whose_number_does_not_depend_on_them() -> None:
    config = tiny_config()
    samples = random_samples(config, 100_000, seed=3)
    packed = pack_samples(samples, config.num_layers)
    assert unpack_samples(packed, config.num_layers, 100_000) == samples
    empty = pack_samples(NO_SAMPLES, config.num_layers)
    assert unpack_samples(empty, config.num_layers, 0) == NO_SAMPLES
    assert len(packed) == len(empty)
    for changed in (b"", packed[:-1], packed + b"\0", empty[:-1] + b"\1"):
        with pytest.raises(ValueError, match=r"size|behind"):
            unpack_samples(changed, config.num_layers, 100_000)
    for num_layers, position in ((1, 100_000), (3, 100_000), (2, 99_967)):
        with pytest.raises(ValueError, match=r"size|positions"):
            unpack_samples(packed, num_layers, position)


def test_what_is_sampled_is_counted_by_layer() -> None:
    core = new_core(sampling(50))
    state = answer(core, Sequence("counted", TEXT)).state
    counted = core.stats().memory
    assert {layer for _, layer in counted} == {0, 1}
    for layer in (0, 1):
        norms = [sample.layers[layer].norm for sample in state.memory_samples.samples]
        histogram = counted["norm", layer]
        assert sum(histogram.counts) == len(norms)
        assert histogram.total == pytest.approx(sum(norms))
        below = sum(norm <= histogram.bounds[3] for norm in norms)
        assert sum(histogram.counts[:4]) == below

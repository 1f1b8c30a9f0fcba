"""Decode by graphs against decode without. On a CPU a stand-in for a graph computes anew into the same places."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass

import pytest
import torch
from torch import Tensor

from atlas_model.config import AtlasConfig
from atlas_model.model import AtlasModel
from engine.device.decode_graphs import (
    Capture,
    DecodeGraphs,
    Replay,
    Results,
    bucket_size,
    bucket_sizes,
    capture_cuda_graph,
)
from engine.device.decode_steps import TorchStep
from engine.device.model_runner import ModelRunner
from engine.device.state_pool import StatePool
from tests.atlas_model.test_model import LAYOUTS
from tests.tiny import tiny_config, tiny_model

NUM_SLOTS = 6
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# Which slots decode, step by step: buckets full and not, slots in any order, sets that grow and shrink.
SETS = [[2], [0, 4], [4, 0, 2], [5, 1, 3, 0, 2], [5, 1, 3, 0, 2], [1, 3, 5], [0, 1, 2, 3, 4, 5], [3, 0], [3, 0], [3, 0]]


def tensors_of(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        return [tensor for field in fields(value) for tensor in tensors_of(getattr(value, field.name))]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
    return [tensor for each in values for tensor in tensors_of(each)]


def compute_anew(step: Callable[[], Results]) -> tuple[Results, Replay]:
    results = step()

    def replay() -> None:
        for place, tensor in zip(tensors_of(results), tensors_of(step()), strict=True):
            place.copy_(tensor)

    return results, replay


def refuse(step: Callable[[], Results]) -> tuple[Results, Replay]:
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


def decoded(model: AtlasModel, device: str, capture: Capture | None) -> tuple[list[Tensor], list[Tensor]]:
    """The logits of every step, and each slot's tensors at the end."""
    with torch.inference_mode():
        pool = StatePool(model.config, NUM_SLOTS, torch.device(device))
        slots = [pool.acquire() for _ in range(NUM_SLOTS)]
        graphs = None if capture is None else DecodeGraphs(model, pool, capture)
        runner = ModelRunner(model, pool, torch.device(device), TorchStep(model, graphs))
        for slot in slots:
            pool.load(slot, model.initial_state(1))
        pieces = [[7 + slot] * (slot + 1) for slot in slots]
        runner.prefill(slots, pieces)
        positions = [len(piece) for piece in pieces]
        logits = []
        for number, chosen in enumerate(SETS):
            token_ids = [10 + number + slot for slot in chosen]
            logits.append(runner.decode(chosen, token_ids, [positions[slot] for slot in chosen]))
            for slot in chosen:
                positions[slot] += 1
        return logits, [tensor for slot in slots for tensor in pool.export(slot).named_tensors().values()]


def is_close(actual: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_graphs_decode_what_steps_do_and_touch_no_other_row(
    config: AtlasConfig, device: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model(config).to(device)
    logits, tensors = decoded(model, device, capture_cuda_graph if device == "cuda" else compute_anew)
    expected_logits, expected_tensors = decoded(model, device, None)
    assert is_close(logits, expected_logits)
    assert is_close(tensors, expected_tensors)
    assert caplog.records == [], "some size was not captured"


def test_a_step_that_cannot_be_captured_is_computed_as_without(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model(tiny_config())
    logits, tensors = decoded(model, "cpu", refuse)
    expected_logits, expected_tensors = decoded(model, "cpu", None)
    assert all(torch.equal(a, b) for a, b in zip(logits + tensors, expected_logits + expected_tensors, strict=True))
    assert [record.getMessage() for record in caplog.records] == [
        f"no CUDA graph for {size} rows: operation not permitted when stream is capturing" for size in (6, 4, 2, 1)
    ]


def test_a_bucket_has_the_next_power_of_two_or_all_slots() -> None:
    assert [bucket_size(count, 6) for count in range(1, 7)] == [1, 2, 4, 4, 6, 6]
    assert bucket_sizes(6) == [1, 2, 4, 6]
    assert bucket_sizes(1) == [1]
    assert bucket_sizes(256) == [1, 2, 4, 8, 16, 32, 64, 128, 256]

"""Which decode step an engine takes, and that answers do not depend on it."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas_model.native import NativeUnavailableError, NotCoveredError
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.device.decode_steps import DecodeStep, NativeStep, TorchStep, choose_decode_step
from engine.device.model_runner import ModelRunner
from engine.device.state_pool import StatePool
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import Sequence
from tests.atlas_model.native_cases import delta_config, needs_compiler
from tests.engine.harness import answer
from tests.tiny import tiny_checkpoint, tiny_config, tiny_model

CPU = torch.device("cpu")
NUM_SLOTS = 6
# Sets that come and go, in any order.
SETS = [[2], [0, 4], [4, 0, 2], [5, 1, 3, 0, 2], [1, 3, 5], [0, 1, 2, 3, 4, 5], [3, 0], [3, 0]]


def chosen(covered: bool = True, **settings: Any) -> DecodeStep:
    model = tiny_model(delta_config() if covered else tiny_config())
    return choose_decode_step(model, StatePool(model.config, 2, CPU), CPU, EngineConfig(**settings))


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    records = [record for record in caplog.records if record.name == "engine.device.decode_steps"]
    return [(record.levelname, record.getMessage()) for record in records]


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@needs_compiler
@pytest.mark.parametrize("setting", ["auto", "require"])
def test_the_kernels_compute_what_they_cover(setting: str, caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(chosen(native_kernels=setting), NativeStep)
    assert messages(caplog) == [("INFO", "decode steps are computed by the native kernels")]


def test_kernels_that_are_off_are_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(chosen(native_kernels="off"), TorchStep)
    assert messages(caplog) == [("INFO", "decode steps are computed by torch's operators: native_kernels is off")]


def test_a_model_that_they_do_not_cover_is_computed_by_torch_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(chosen(covered=False), TorchStep)
    ((level, message),) = messages(caplog)
    assert level == "INFO"
    assert "delta rule" in message
    with pytest.raises(NotCoveredError, match="delta rule"):
        chosen(covered=False, native_kernels="require")


def test_kernels_that_cannot_be_compiled_are_one_warning_or_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert isinstance(chosen(), TorchStep)
    ((level, message),) = messages(caplog)
    assert level == "WARNING"
    assert "no-such-compiler" in message
    with pytest.raises(NativeUnavailableError, match="no-such-compiler"):
        chosen(native_kernels="require")


@needs_compiler
def test_slots_decode_the_same_whichever_step_computes_them() -> None:
    config = replace(delta_config(), memory_chunk_sizes=(3, 5))
    model = tiny_model(config)
    results = []
    for setting in ("off", "require"):
        with torch.inference_mode():
            pool = StatePool(config, NUM_SLOTS, CPU)
            step = choose_decode_step(model, pool, CPU, EngineConfig(native_kernels=setting))
            runner = ModelRunner(model, pool, CPU, step)
            slots = [pool.acquire() for _ in range(NUM_SLOTS)]
            for slot in slots:
                pool.load(slot, model.initial_state(1))
            runner.prefill(slots, [[7 + slot] * (slot + 1) for slot in slots])
            positions = [slot + 1 for slot in slots]
            logits = []
            for number, those in enumerate(SETS):
                ids = [10 + number + slot for slot in those]
                logits.append(runner.decode(those, ids, [positions[slot] for slot in those]))
                for slot in those:
                    positions[slot] += 1
            with pytest.raises(IndexError):
                runner.decode([0, 1], [5, 10**6], positions[:2])
            results.append([*logits, *(t for slot in slots for t in pool.export(slot).named_tensors().values())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@needs_compiler
def test_an_engine_answers_the_same_with_the_kernels_and_without() -> None:
    checkpoint = tiny_checkpoint(memory=delta_config().memory)
    params = SamplingParams(max_tokens=40, temperature=1.0, seed=3, ignore_eos=True)

    def answered(native_kernels: str) -> tuple[tuple[int, ...], dict[str, torch.Tensor]]:
        core = EngineCore(checkpoint, EngineConfig(max_num_sequences=2, native_kernels=native_kernels))
        result = answer(core, Sequence("a", [7 + number % 90 for number in range(33)], params))
        return result.token_ids, result.state.tensors.named_tensors()

    (ids, state), (expected_ids, expected) = answered("require"), answered("off")
    assert ids == expected_ids
    assert len(ids) == 40
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-9)


def test_the_sources_are_part_of_the_package() -> None:
    project = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '"native/*.cpp", "native/*.h"' in project

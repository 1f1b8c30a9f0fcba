"""What moving one state between the device and the host costs, from pinned and from plain memory.

`begun` is what the engine's thread spends on it, `done` when the state is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from atlas_model.checkpoint import load_checkpoint
from bench.clock import wait_for
from bench.gpu.parts import Notes, Settings
from engine.device.state_pool import StatePool
from engine.device.transfers import Transfers

NUM_COPIES_PER_ROUND = 20


@torch.inference_mode()
def measure(settings: Settings, notes: Notes) -> None:
    device = torch.device(settings.device)
    model = load_checkpoint(settings.model, device).model
    pool = StatePool(model.config, 2, device)
    slot = pool.acquire()
    pool.load(slot, model.initial_state(1))
    kinds = {"pinned": Transfers(model.config, device, 2**30), "plain": Transfers(model.config, device, 0)}
    for kind, transfers in kinds.items():
        on_host = transfers.to_host(pool.copy(slot)).wait()
        calls: dict[str, Callable[[], object]] = {
            f"device to {kind} memory": partial(_export, transfers, pool, slot),
            f"{kind} memory to device": partial(pool.load, slot, on_host),
        }
        for name, call in calls.items():
            call()
            times = [_seconds(device, call) for _ in range(settings.num_rounds * NUM_COPIES_PER_ROUND)]
            notes.figure(f"{name}, begun, seconds", median(begun for begun, _ in times))
            notes.figure(f"{name}, done, seconds", median(done for _, done in times))
    notes.figure("bytes of a state", float(sum(each.nbytes for each in on_host.named_tensors().values())))


def _export(transfers: Transfers, pool: StatePool, slot: int) -> None:
    transfers.to_host(pool.copy(slot))


def _seconds(device: torch.device, call: Callable[[], object]) -> tuple[float, float]:
    """Until the call has returned, and until the device has done all that it was asked for."""
    wait_for(device)
    began = time.perf_counter()
    call()
    begun = time.perf_counter()
    wait_for(device)
    return begun - began, time.perf_counter() - began

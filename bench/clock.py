"""Clocks that run in turns, so that whatever else the machine does meets everything that is compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

CPU = torch.device("cpu")


def seconds_of(call: Callable[[], object], device: torch.device = CPU) -> float:
    """Seconds of one call, what it has left to do on the device included."""
    wait_for(device)
    began = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - began


def wait_for(device: torch.device) -> None:
    """Until all that was asked of the device is done; the CPU has never anything left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_in_turns(
    calls: Sequence[Callable[[], object]], num_turns: int, device: torch.device = CPU
) -> list[list[float]]:
    """Seconds of each call in each turn, after one that is not counted."""
    for call in calls:
        call()
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(num_turns):
        for own, call in zip(seconds, calls, strict=True):
            own.append(seconds_of(call, device))
    return seconds


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the turns' own ratios."""
    return median(above / below for above, below in zip(numerators, denominators, strict=True))

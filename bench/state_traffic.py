"""What it takes to move the bytes of a state through the processor, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from atlas_model.traffic import Traffic
from bench.clock import seconds_in_turns

_FLOAT_NUM_BYTES = 4


class StateTraffic:
    """Plain buffers of as many bytes as a step has to read and to write.

    Summing is the fastest way to read, and filling the fastest to write, that torch has. Small buffers stay in the
    cache from turn to turn, as a small state does.
    """

    def __init__(self, traffic: Traffic, device: torch.device) -> None:
        self._read = _buffer(traffic.num_bytes_read, device)
        self._written = _buffer(traffic.num_bytes_written, device)

    def move(self) -> None:
        self._read.sum()
        self._written.fill_(1.0)


def bandwidths(num_bytes: int, num_turns: int, device: torch.device) -> dict[str, float]:
    """Bytes a second at best, of buffers of `num_bytes`: read, written, and copied, where each counts twice."""
    source, target = _buffer(num_bytes, device), _buffer(num_bytes, device)
    calls: dict[str, Callable[[], object]] = {
        "read": source.sum,
        "write": lambda: target.fill_(1.0),
        "copy": lambda: target.copy_(source),
    }
    seconds = seconds_in_turns(list(calls.values()), num_turns, device)
    return {
        name: (2 if name == "copy" else 1) * num_bytes / min(each) for name, each in zip(calls, seconds, strict=True)
    }


def _buffer(num_bytes: float, device: torch.device) -> Tensor:
    # Filled, so that every page is there.
    return torch.ones(round(num_bytes / _FLOAT_NUM_BYTES), device=device)

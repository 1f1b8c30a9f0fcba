"""What it takes to move so many bytes through the processor, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from atlas_model.traffic import Traffic

_FLOAT_NUM_BYTES = 4


class PlainTraffic:
    """Plain buffers of as many bytes as a step has to read and to write.

    Summing is the fastest way to read, and filling the fastest to write, that torch has. Small buffers stay in the
    cache from turn to turn, as a small state does.
    """

    def __init__(self, traffic: Traffic, device: torch.device) -> None:
        self._read = plain_buffer(traffic.num_bytes_read, device)
        self._written = plain_buffer(traffic.num_bytes_written, device)

    def move(self) -> None:
        self._read.sum()
        self._written.fill_(1.0)


def plain_buffer(num_bytes: float, device: torch.device) -> Tensor:
    # Filled, so that every page is there.
    return torch.ones(round(num_bytes / _FLOAT_NUM_BYTES), device=device)

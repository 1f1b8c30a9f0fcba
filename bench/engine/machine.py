"""What the machine can do at best: bandwidth of its memory, rate of products whose shapes suit it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.clock import seconds_in_turns
from bench.engine.plain_traffic import plain_buffer

_SQUARE = 1024


class Machine:
    """One device, measured once; `num_turns` of each, of which the best counts."""

    def __init__(self, device: torch.device, num_turns: int, buffer_num_bytes: int) -> None:
        """buffer_num_bytes: more than the last-level cache holds."""
        self.device = device
        self.num_turns = num_turns
        self.bandwidth = self._bandwidth(buffer_num_bytes)
        self._rates: dict[torch.dtype, float] = {}

    def product_rate(self, dtype: torch.dtype) -> float:
        """Operations a second of a square product of 1,024."""
        if dtype not in self._rates:
            left, right = (torch.ones(_SQUARE, _SQUARE, dtype=dtype, device=self.device) for _ in range(2))
            (seconds,) = seconds_in_turns([lambda: left @ right], self.num_turns, self.device)
            self._rates[dtype] = 2 * _SQUARE**3 / min(seconds)
        return self._rates[dtype]

    def _bandwidth(self, num_bytes: int) -> dict[str, float]:
        """Bytes a second: read, written, and copied, where each byte counts twice."""
        source, target = plain_buffer(num_bytes, self.device), plain_buffer(num_bytes, self.device)
        calls: dict[str, Callable[[], object]] = {
            "read": source.sum,
            "write": lambda: target.fill_(1.0),
            "copy": lambda: target.copy_(source),
        }
        seconds = seconds_in_turns(list(calls.values()), self.num_turns, self.device)
        return {
            name: (2 if name == "copy" else 1) * num_bytes / min(each)
            for name, each in zip(calls, seconds, strict=True)
        }

"""One memory by itself, what it is fed, and clocks that run in turns: what the benches inside the model share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import normalize

from atlas_model import MemoryConfig, NeuralMemory
from atlas_model.gates import Gates
from atlas_model.memory import MemoryInputs, MemoryRule, MemoryState


@dataclass(frozen=True, slots=True)
class MemoryWorkload:
    """One row of random tokens for a memory that has read nothing: float32, position 0.

    Keys and queries have length 1, values are normal, gates uniform in what the configuration lets them reach.
    """

    rule: MemoryRule
    inputs: MemoryInputs
    state: MemoryState
    position: Tensor

    @classmethod
    def of(cls, config: MemoryConfig, num_tokens: int, seed: int = 0) -> MemoryWorkload:
        torch.manual_seed(seed)
        memory = NeuralMemory(config).requires_grad_(False)
        shape = (1, config.num_heads, num_tokens)
        retention = torch.rand(shape) if config.retention == "decay" else torch.ones(shape)
        inputs = MemoryInputs(
            queries=normalize(torch.randn(*shape, config.key_width), dim=-1),
            keys=normalize(torch.randn(*shape, config.key_width), dim=-1),
            values=torch.randn(*shape, config.value_width),
            gates=Gates(torch.rand(shape), retention, torch.rand(shape), torch.rand(shape) * config.max_momentum_decay),
        )
        return cls(memory.rule(), inputs, memory.initial_state(1), torch.zeros(1, dtype=torch.int64))

    def tokens(self, start: int, stop: int) -> MemoryInputs:
        """Tokens start..stop of the inputs."""
        pick = slice(start, stop)
        return MemoryInputs(
            self.inputs.queries[:, :, pick],
            self.inputs.keys[:, :, pick],
            self.inputs.values[:, :, pick],
            Gates.unstack(self.inputs.gates.stack()[:, :, pick]),
        )


def seconds_in_turns(calls: Sequence[Callable[[], object]], num_turns: int) -> list[list[float]]:
    """Seconds of each call in each turn. The calls take turns, so whatever else the machine does meets all of them."""
    for call in calls:
        call()
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(num_turns):
        for own, call in zip(seconds, calls, strict=True):
            began = time.perf_counter()
            call()
            own.append(time.perf_counter() - began)
    return seconds


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the turns' own ratios."""
    return median(above / below for above, below in zip(numerators, denominators, strict=True))

"""One memory by itself and what it is fed: what the benches inside the model share."""

from __future__ import annotations

from dataclasses import dataclass

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

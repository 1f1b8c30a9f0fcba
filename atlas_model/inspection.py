"""A sequence's memory as numbers: how large it is, how far from its start, of what rank, and what it does just now.

Everything is computed from the state alone, so it can be asked of any session at any time and costs a forward nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atlas_model.gates import Gates
from atlas_model.memory import MemoryRule, MemoryState
from atlas_model.model import AtlasModel
from atlas_model.state import State

_NUM_SINGULAR_VALUES = 8


@dataclass(frozen=True, slots=True)
class MatrixReport:
    """One matrix of one head's memory. Norms are Frobenius'; momentum_norm is 0 where no momentum is carried.

    effective_rank: exp of the entropy of the singular values' shares (Roy and Vetterli, 2007), from 1 to the smaller
    side; 0 for a zero matrix. singular_values: the largest, at most 8.
    """

    norm: float
    momentum_norm: float
    distance_from_initial: float
    effective_rank: float
    singular_values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RecentReport:
    """Means over the tokens of the open chunk, those read since the last commit of the memory.

    surprise: the inner loss of what the memory answers to their keys, before it learns them.
    """

    surprise: float
    token_gate: float
    retention: float
    inner_lr: float
    momentum_decay: float


@dataclass(frozen=True, slots=True)
class HeadReport:
    """recent: None while the open chunk is empty. global_retention: the constant part of its retention."""

    layer: int
    head: int
    matrices: dict[str, MatrixReport]
    global_retention: float
    num_recent_tokens: int
    recent: RecentReport | None


@torch.inference_mode()
def inspect_memory(model: AtlasModel, state: State, row: int = 0) -> list[HeadReport]:
    """Every head of every layer, of one sequence of the batch; nothing in a layout without a memory."""
    position = int(state.position[row])
    reports: list[HeadReport] = []
    memories = [layer.memory for layer in state.layers if layer.memory is not None]
    for index, (mixer, memory) in enumerate(zip(model.mixers, memories, strict=True)):
        config = mixer.memory.config
        num_recent = position % config.memory_chunk_size
        recent = _recent(mixer.memory.rule(), memory, row, num_recent)
        for head in range(config.num_heads):
            matrices = {
                name: _matrix_report(
                    weights[row, head],
                    memory.momentum[name][row, head] if name in memory.momentum else None,
                    mixer.memory.initial[name][head],
                )
                for name, weights in memory.memory.items()
            }
            kept = float(mixer.gate_maps.global_retention[head])
            reports.append(HeadReport(index, head, matrices, kept, num_recent, recent[head]))
    return reports


def memory_rms(state: State) -> float:
    """Root mean square of a matrix's entries, the mean over all matrices and rows' memories; 0 without any."""
    memories = [layer.memory for layer in state.layers if layer.memory is not None]
    means = [weights.square().mean().sqrt() for memory in memories for weights in memory.memory.values()]
    return float(torch.stack(means).mean()) if means else 0.0


def _matrix_report(weights: Tensor, momentum: Tensor | None, initial: Tensor) -> MatrixReport:
    values = torch.linalg.svdvals(weights.double())
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    entropy = -torch.special.xlogy(shares, shares).sum()
    return MatrixReport(
        norm=float(weights.norm()),
        momentum_norm=0.0 if momentum is None else float(momentum.norm()),
        distance_from_initial=float((weights - initial).norm()),
        effective_rank=float(entropy.exp()) if float(values[0]) > 0 else 0.0,
        singular_values=tuple(values[:_NUM_SINGULAR_VALUES].tolist()),
    )


def _recent(rule: MemoryRule, state: MemoryState, row: int, num_tokens: int) -> list[RecentReport | None]:
    """One for each head."""
    if num_tokens == 0:
        return [None] * rule.config.num_heads
    start = rule.config.omega_window - 1
    tokens = slice(start, start + num_tokens)
    dtype = rule.max_inner_lr.dtype
    keys, values, stacked = (
        each[row : row + 1, :, tokens].to(dtype) for each in (state.keys, state.values, state.gates)
    )
    memory = {name: weights[row : row + 1] for name, weights in state.memory.items()}
    answers = rule.network.apply(rule.feature_map(keys), keys, lambda name, x: x @ memory[name])
    surprise = rule.objective.loss(answers, values).mean(-1)[0]
    gates = Gates.unstack(stacked.mean(2)[0])
    columns = (surprise, gates.token_gate, gates.retention, gates.inner_lr, gates.momentum_decay)
    return [RecentReport(*each) for each in zip(*(column.tolist() for column in columns), strict=True)]

"""The naive form: one token after the other, gradients by autograd, every sum as the equation writes it.

The oracle that the other two forms are compared with; slow on purpose. It shares no arithmetic with them: no closed
gradient, no coefficient of a chunk, no Gram matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atlas_model.gates import Gates
from atlas_model.memory.rule import MemoryInputs, MemoryRule, MemoryState
from atlas_model.memory_networks import Weights
from atlas_model.newton_schulz import newton_schulz


@dataclass(frozen=True, slots=True)
class _Token:
    """One token of one row: vectors [H, d], gates [H]."""

    query: Tensor
    key: Tensor
    value: Tensor
    token_gate: Tensor
    retention: Tensor
    inner_lr: Tensor
    momentum_decay: Tensor


def naive(rule: MemoryRule, inputs: MemoryInputs, state: MemoryState, position: Tensor) -> tuple[Tensor, MemoryState]:
    """Same contract as `chunk` without lengths: outputs [B, H, T, value_width] and the state after."""
    outputs: list[Tensor] = []
    states: list[MemoryState] = []
    for row in range(position.shape[0]):
        row_outputs, row_state = _row(rule, inputs, state, row, int(position[row]))
        outputs.append(row_outputs)
        states.append(row_state)

    def stacked(weights: list[Weights], like: Weights) -> Weights:
        return {name: torch.stack([each[name] for each in weights]) for name in like}

    return torch.stack(outputs), MemoryState(
        memory=stacked([each.memory for each in states], state.memory),
        momentum=stacked([each.momentum for each in states], state.momentum),
        keys=torch.stack([each.keys for each in states]),
        values=torch.stack([each.values for each in states]),
        gates=torch.stack([each.gates for each in states]),
    )


def _row(
    rule: MemoryRule, inputs: MemoryInputs, state: MemoryState, row: int, position: int
) -> tuple[Tensor, MemoryState]:
    config = rule.config
    size, before = config.memory_chunk_size, config.omega_window - 1
    phase = position % size
    memory = {name: weights[row] for name, weights in state.memory.items()}
    momentum = {name: torch.zeros_like(weights) for name, weights in memory.items()}
    momentum |= {name: weights[row] for name, weights in state.momentum.items()}
    buffered = [
        _token(state.keys[row], state.keys[row], state.values[row], Gates.unstack(state.gates[row]), at)
        for at in range(before + phase)
    ]
    new = [
        _token(
            inputs.queries[row],
            inputs.keys[row],
            inputs.values[row],
            Gates.unstack(inputs.gates.stack()[row]),
            at,
        )
        for at in range(inputs.keys.shape[2])
    ]
    window, opened = buffered[:before], buffered[before:]
    outputs: list[Tensor] = []
    stream = opened + new
    while len(stream) > 0:
        tokens, stream = stream[:size], stream[size:]
        reads, after_memory, after_momentum = _read_chunk(rule, memory, momentum, window, tokens)
        outputs.extend(reads)
        if len(tokens) < size:
            opened = tokens
            break
        opened = []
        memory, momentum = after_memory, after_momentum
        window = (window + tokens)[len(window) + len(tokens) - before :]
    kept = window + opened
    new_state = MemoryState(
        memory,
        momentum,
        _buffer(state.keys[row], [token.key for token in kept]),
        _buffer(state.values[row], [token.value for token in kept]),
        _buffer(
            state.gates[row],
            [
                torch.stack([token.token_gate, token.retention, token.inner_lr, token.momentum_decay], dim=-1)
                for token in kept
            ],
        ),
    )
    return torch.stack(outputs[phase:], dim=1), new_state


def _token(queries: Tensor, keys: Tensor, values: Tensor, gates: Gates, at: int) -> _Token:
    return _Token(
        queries[:, at],
        keys[:, at],
        values[:, at],
        gates.token_gate[:, at],
        gates.retention[:, at],
        gates.inner_lr[:, at],
        gates.momentum_decay[:, at],
    )


def _buffer(like: Tensor, kept: list[Tensor]) -> Tensor:
    buffer = torch.zeros_like(like)
    for at, vector in enumerate(kept):
        buffer[:, at] = vector
    return buffer


def _read_chunk(
    rule: MemoryRule, anchor: Weights, anchor_momentum: Weights, window: list[_Token], tokens: list[_Token]
) -> tuple[list[Tensor], Weights, Weights]:
    """Equations 9, 32 and 33 over one chunk, split into what the anchor leaves and what the chunk's tokens drive."""
    config = rule.config
    column_tokens = window + tokens
    gradients = [_gradient(rule, anchor, token) for token in column_tokens]
    left_memory, left_momentum = dict(anchor), dict(anchor_momentum)
    driven_memory = {name: torch.zeros_like(weights) for name, weights in anchor.items()}
    driven_momentum = {name: torch.zeros_like(weights) for name, weights in anchor.items()}
    bound = _StepBound(rule, anchor, column_tokens)
    current, current_momentum = dict(anchor), dict(anchor_momentum)
    reads: list[Tensor] = []
    for at, token in enumerate(tokens):
        column = len(window) + at
        in_loss = range(max(0, column - config.omega_window + 1), column + 1)
        theta, alpha, eta = (gate[:, None, None] for gate in (token.momentum_decay, token.retention, token.inner_lr))
        bound.advance(in_loss, theta, alpha, eta)
        scale = bound.scale()[:, None, None] if config.step == "bounded" else 1.0
        for name in anchor:
            left_momentum[name] = theta * left_momentum[name]
            goal = rule.initial[name] if config.retention_target == "initial" else torch.zeros_like(anchor[name])
            left_memory[name] = alpha * left_memory[name] + (1 - alpha) * goal - eta * left_momentum[name]
            loss_gradient = sum(
                (column_tokens[i].token_gate[:, None, None] * gradients[i][name] for i in in_loss),
                torch.zeros_like(anchor[name]),
            )
            driven_momentum[name] = theta * driven_momentum[name] + loss_gradient
            driven_memory[name] = alpha * driven_memory[name] - eta * driven_momentum[name]
            current_momentum[name] = left_momentum[name] + scale * driven_momentum[name]
            if config.muon_granularity == "token":
                push = eta * torch.stack([column_tokens[i].token_gate for i in in_loss]).amax(0)[:, None, None]
                step = newton_schulz(current_momentum[name], config.newton_schulz)
                current[name] = alpha * current[name] + (1 - alpha) * goal - push * step
            else:
                current[name] = left_memory[name] + scale * driven_memory[name]
        seen = anchor if config.read_granularity == "chunk" else current
        reads.append(_apply(rule, seen, token.query))
    if config.rule == "muon" and config.muon_granularity == "chunk":
        push = torch.stack([token.token_gate * token.inner_lr for token in tokens]).mean(0)
        current = dict(anchor)
        for name in anchor:
            goal = rule.initial[name] if config.retention_target == "initial" else torch.zeros_like(anchor[name])
            for token in tokens:
                alpha = token.retention[:, None, None]
                current[name] = alpha * current[name] + (1 - alpha) * goal
            step = newton_schulz(current_momentum[name], config.newton_schulz)
            current[name] = current[name] - push[:, None, None] * step
    if config.retention == "row_norm":
        current = {name: _with_row_norms_of(rule.initial[name], weights) for name, weights in current.items()}
    return reads, current, current_momentum


def _with_row_norms_of(initial: Tensor, weights: Tensor) -> Tensor:
    rows = torch.nn.functional.normalize(weights, dim=-1)
    return rows * initial.square().sum(-1, keepdim=True).sqrt()


def _features(rule: MemoryRule, vectors: Tensor) -> Tensor:
    """phi of one vector per head: [H, key_width] -> [1, H, 1, features]."""
    return rule.feature_map(vectors[None, :, None])


def _apply(rule: MemoryRule, weights: Weights, vectors: Tensor) -> Tensor:
    residual = vectors[None, :, None]
    answer: Tensor = rule.network.apply(_features(rule, vectors), residual, lambda name, x: x @ weights[name])
    return answer[0, :, 0]


def _gradient(rule: MemoryRule, anchor: Weights, token: _Token) -> Weights:
    """Gradient of the token's inner loss at the anchor, by autograd."""
    with torch.enable_grad():
        leaves = {name: weights.detach().requires_grad_() for name, weights in anchor.items()}
        loss = rule.objective.loss(_apply(rule, leaves, token.key), token.value).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
    return dict(zip(leaves, gradients, strict=True))


class _StepBound:
    """Frobenius norms of the sums of w x x^T over the prefix, where w counts a write now and its later momentum.

    The network says of which x, and with which gain (its `curvature`). Each sum is carried by the recursion of the
    momentum and of the memory, with x x^T in place of the gradient.
    """

    def __init__(self, rule: MemoryRule, anchor: Weights, tokens: list[_Token]) -> None:
        self._push = rule.future_push[:, None, None]
        self._outer: list[list[Tensor]] = []
        self._gains: list[Tensor] = []
        for token in tokens:
            features = _features(rule, token.key)
            batched = {name: weights[None] for name, weights in anchor.items()}
            factors = rule.factors(features, token.key[None, :, None], token.value[None, :, None], batched)
            terms = rule.network.curvature(features, factors, batched)
            self._outer = self._outer or [[] for _ in terms]
            self._gains = [torch.as_tensor(gain, dtype=features.dtype).reshape(-1) for _, gain in terms]
            for outer, (rows, _) in zip(self._outer, terms, strict=True):
                x = (features if rows is None else rows)[0, :, 0]
                outer.append(token.token_gate[:, None, None] * x[:, :, None] * x[:, None, :])
        self._momentum = [torch.zeros_like(each[0]) for each in self._outer]
        self._memory = [torch.zeros_like(each[0]) for each in self._outer]

    def advance(self, in_loss: range, theta: Tensor, alpha: Tensor, eta: Tensor) -> None:
        for at, outer in enumerate(self._outer):
            self._momentum[at] = theta * self._momentum[at] + torch.stack([outer[i] for i in in_loss]).sum(0)
            self._memory[at] = alpha * self._memory[at] + eta * self._momentum[at]

    def scale(self) -> Tensor:
        bound = torch.zeros(self._push.shape[0], dtype=self._push.dtype)
        for gain, memory, momentum in zip(self._gains, self._memory, self._momentum, strict=True):
            bound = bound + gain * torch.linalg.matrix_norm(memory + self._push * momentum)
        return bound.clamp(min=1.0).reciprocal()

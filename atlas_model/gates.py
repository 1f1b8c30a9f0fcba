"""The four gates of a memory, one scalar per token and head, from small linear maps of the block's input.

token_gate and retention lie in [0, 1] and reach both ends exactly: a gate that is only almost shut leaks, and a
retention of 1 - 1e-4 has forgotten everything after 1e5 tokens. inner_lr lies in [0, a learned maximum per head],
momentum_decay in [0, max_momentum_decay].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import hardsigmoid, linear

from atlas_model.config import AtlasConfig


@dataclass(frozen=True, slots=True)
class Gates:
    """Each [B, H, T]. The papers' gamma (token_gate), alpha (retention), eta (inner_lr), theta (momentum_decay)."""

    token_gate: Tensor
    retention: Tensor
    inner_lr: Tensor
    momentum_decay: Tensor

    def stack(self) -> Tensor:
        """All four in one tensor, [B, H, T, 4]."""
        return torch.stack([self.token_gate, self.retention, self.inner_lr, self.momentum_decay], dim=-1)

    @staticmethod
    def unstack(stacked: Tensor) -> Gates:
        return Gates(*stacked.unbind(-1))


NEUTRAL_GATES = (0.0, 1.0, 0.0, 1.0)
"""Gates of a token that changes nothing: it writes nothing, forgets nothing, pushes nothing, brakes nothing."""


class _HardSigmoid(torch.autograd.Function):
    """clamp(x / 6 + 1/2, 0, 1), with a straight-through gradient where it saturates.

    A clamp alone has no gradient there and a shut gate would stay shut. The gradient passes only where it leads back
    inside, so that a saturated gate does not drift ever further out.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return hardsigmoid(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        (grad,) = grad_outputs
        blocked = ((x <= -3.0) & (grad > 0.0)) | ((x >= 3.0) & (grad < 0.0))
        return torch.where(blocked, torch.zeros_like(grad), grad / 6.0)


def hard_sigmoid(x: Tensor) -> Tensor:
    """clamp(x / 6 + 1/2, 0, 1) that can be trained out of both of its ends."""
    if not torch.is_grad_enabled():
        return hardsigmoid(x)
    result: Tensor = _HardSigmoid.apply(x)  # type: ignore[no-untyped-call]
    return result


class GateMaps(nn.Module):
    """[B, T, width], and queries and keys [B, H, T, key_width], -> Gates.

    Beside the token the gates see its query and key, which hold the convolution's last tokens (decided here): whether a
    word is worth writing is seldom said by the word, and a first layer knows nothing else of its context.

    Retention is a gate's value times a constant of the head, Miras' local and global part.

    Starts open for writing, with retention 1 and half of the maximal momentum_decay. Retention starts well inside its
    saturation: a memory that is not used yet is noise, and the first thing that training learns would be to forget it.
    """

    def __init__(self, config: AtlasConfig) -> None:
        super().__init__()
        num_heads = config.memory.num_heads
        self.decays = config.memory.retention == "decay"
        self.max_momentum_decay = config.memory.max_momentum_decay
        self.linear = nn.Linear(config.width + 2 * config.key_inner_width, 4 * num_heads)
        self.log_max_inner_lr = nn.Parameter(torch.zeros(num_heads))
        if self.decays:
            self.global_retention_logit = nn.Parameter(torch.full((num_heads,), 6.0))
        nn.init.normal_(self.linear.weight, std=self.linear.in_features**-0.5)
        with torch.no_grad():
            self.linear.weight[num_heads : 2 * num_heads] *= 0.1
            self.linear.bias.copy_(torch.tensor([1.0, 6.0, 1.0, 0.0]).repeat_interleave(num_heads))

    @property
    def global_retention(self) -> Tensor:
        """The constant part of each head's retention, [H] (Miras); 1 where nothing decays."""
        if not self.decays:
            return torch.ones_like(self.log_max_inner_lr)
        return hard_sigmoid(self.global_retention_logit)

    @property
    def max_inner_lr(self) -> Tensor:
        """The largest inner_lr of each head, [H]."""
        return self.log_max_inner_lr.exp()

    @property
    def largest(self) -> Tensor:
        """What each of the linear map's outputs is worth where it is quite open, [4 H]."""
        ones = torch.ones_like(self.log_max_inner_lr)
        return torch.cat([ones, self.global_retention, self.max_inner_lr, ones * self.max_momentum_decay])

    def forward(self, x: Tensor, queries: Tensor, keys: Tensor) -> Gates:
        parts = [x, queries.transpose(1, 2).flatten(2), keys.transpose(1, 2).flatten(2)]
        # Part by part: they are wide, and what comes of them is not.
        first, *others = self.linear.weight.split([part.shape[-1] for part in parts], dim=1)
        opened = linear(x, first, self.linear.bias)
        for part, weight in zip(parts[1:], others, strict=True):
            opened = opened + linear(part, weight)
        opened = hard_sigmoid(opened)
        token_gate, retention, inner_lr, momentum_decay = opened.transpose(1, 2).tensor_split(4, dim=1)
        if self.decays:
            # Each row has the constant to itself: the gradient that its end blocks is the row's own, not the batch's,
            # so that rows can be trained on in parts and their gradients added.
            retention = retention * hard_sigmoid(self.global_retention_logit.expand(len(x), -1))[:, :, None]
        return Gates(
            token_gate,
            retention if self.decays else torch.ones_like(retention),
            inner_lr * self.max_inner_lr[:, None],
            momentum_decay * self.max_momentum_decay,
        )

    def step(self, x: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """One token a row: [B, width], queries and keys [B, H, 1, key_width] -> the gates stacked, [B, H, 4]."""
        opened = hard_sigmoid(self.linear(torch.cat([x, queries.flatten(1), keys.flatten(1)], dim=-1)))
        gates: Tensor = (opened * self.largest).unflatten(-1, (4, -1)).transpose(1, 2)
        if not self.decays:
            gates[..., 1] = 1.0
        return gates

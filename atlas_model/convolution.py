"""The short causal convolution on queries, keys and values: it binds a key to the token after it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from atlas_model.changes import MANY_ROWS, Change, Shift
from atlas_model.ragged import tail

_NUM_SUMMED = 8


class ShortConvolution(nn.Module):
    """Causal depthwise convolution, [B, T, channels] -> the same; its tail is part of the state.

    The first `num_summing` channels start as the sum of the last 8 tokens (`width`, if it is less), the others as the
    token itself. Queries and keys that begin as sums match wherever their words stand, so that a question finds the
    fact it shares a word with before anything is learned (decided here).
    """

    def __init__(self, channels: int, width: int, num_summing: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, channels))
        with torch.no_grad():
            self.weight[-1] = 1.0
            num_summed = min(width, _NUM_SUMMED)
            self.weight[-num_summed:, :num_summing] = num_summed**-0.5

    def forward(self, x: Tensor, before: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """before: [B, width - 1, channels]. Returns the convolved tokens and the tail after them."""
        return convolve(x, before, self.weight, lengths)

    def step(self, x: Tensor, before: Tensor) -> tuple[Tensor, dict[str, Change]]:
        """One token a row, [B, channels]: the same as `forward`, and what changes of the tail."""
        x = x.to(before.dtype)
        changes: dict[str, Change] = {"convolution": Shift(x)} if before.shape[1] else {}
        new = x.to(self.weight.dtype)
        if len(x) < MANY_ROWS:
            earlier = (before.to(new.dtype) * self.weight[:-1]).sum(1)
            return torch.addcmul(earlier, new, self.weight[-1]), changes
        mixed = new * self.weight[-1]
        for offset in range(before.shape[1]):
            mixed.addcmul_(before[:, offset].to(new.dtype), self.weight[offset])
        return mixed, changes


def convolve(x: Tensor, before: Tensor, weight: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """x [B, T, channels] with the tail before it and weight [width, channels]: the result, and the tail after it."""
    x = x.to(before.dtype).to(weight.dtype)
    extended = torch.cat([before.to(x.dtype), x], dim=1)
    mixed = _weighed_sums(extended, weight) if x.dtype == torch.float64 else _depthwise(extended, weight)
    return mixed, tail(extended, lengths, weight.shape[0] - 1).to(before.dtype)


def _depthwise(extended: Tensor, weight: Tensor) -> Tensor:
    """One pass over the tokens, as an image of one row whose channels come last: [B, width - 1 + T, channels]."""
    image = extended.transpose(1, 2).unsqueeze(2)
    mixed: Tensor = conv2d(image, weight.t()[:, None, None], groups=weight.shape[1])
    return mixed.squeeze(2).transpose(1, 2)


def _weighed_sums(extended: Tensor, weight: Tensor) -> Tensor:
    """The same, a pass for each weight: oneDNN has no float64, and what takes its place goes channel by channel."""
    num_new = extended.shape[1] - weight.shape[0] + 1
    mixed = extended[:, :num_new] * weight[0]
    for offset in range(1, weight.shape[0]):
        mixed = mixed + extended[:, offset : offset + num_new] * weight[offset]
    return mixed

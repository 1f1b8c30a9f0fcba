"""The dense layers' products in bfloat16, on processors that make them faster than in float32.

Weights are rounded once, what goes in at each call, and what comes out is rounded before it is float32 again. All else
keeps its dtype: the residual stream, norms, gates, convolution, attention, the memory and its state, and the logits. So
a state that was made with one setting goes on with the other.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from atlas_model.gates import GateMaps
from atlas_model.model import AtlasModel

# Fewer rows are bound by reading the weights one by one, which oneDNN does faster in float32.
_MIN_NUM_ROWS = 16
_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def supports_bfloat16_products(device: str, cpu_info: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the device has instructions for them; a CPU without them takes a hundred times as long."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_info.is_file() and not _CPU_FLAGS.isdisjoint(cpu_info.read_text().split())


class RoundedLinear(nn.Linear):
    """A linear layer without bias whose products are made in bfloat16 where there are many rows."""

    def __init__(self, exact: nn.Linear) -> None:
        super().__init__(exact.in_features, exact.out_features, bias=False, device="meta")
        self.weight = exact.weight
        self.rounded_weight: Tensor
        self.register_buffer("rounded_weight", exact.weight.detach().to(torch.bfloat16), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() < _MIN_NUM_ROWS * self.in_features:
            return super().forward(x)
        return linear(x.to(torch.bfloat16), self.rounded_weight).to(x.dtype)


def round_products(model: AtlasModel) -> None:
    """From now on the model's dense layers are RoundedLinear; only for reading, not for training."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear and not isinstance(parent, GateMaps):
                setattr(parent, name, RoundedLinear(child))

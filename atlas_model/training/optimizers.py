"""What moves the weights: Muon for the blocks' dense matrices, AdamW for all else, in the dtype this CPU is fast in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from atlas_model.config import NewtonSchulzConfig
from atlas_model.model import AtlasModel
from atlas_model.newton_schulz import newton_schulz
from atlas_model.training.recipe import Recipe

_MUON_MOMENTUM = 0.95


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrices are multiplied in hardware: on a CPU without, they are a hundred times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay; the step scaled to the size of AdamW's.

    Differs from torch.optim.Muon, whose iteration is always in bfloat16, in one thing: `dtype` is where it is done.
    Source: Keller Jordan's Muon; the scale 0.2 sqrt(max(rows, columns)) is Moonlight's (arXiv 2502.16982).
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, weight_decay: float, dtype: torch.dtype) -> None:
        """params: groups of matrices."""
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._orthogonal(parameter.grad, self.state[parameter])
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)

    def _orthogonal(self, gradient: Tensor, state: dict[str, Any]) -> Tensor:
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        momentum: Tensor = state["momentum"]
        momentum.lerp_(gradient, 1 - _MUON_MOMENTUM)
        update = gradient.lerp(momentum, _MUON_MOMENTUM)
        return newton_schulz(update.to(self._dtype), NewtonSchulzConfig()).to(gradient.dtype)


def make_optimizers(model: AtlasModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' dense matrices, AdamW for embedding, norms, gates and the memory's learned start.

    Groups carry `lr_ratio`, of their learning rate to the recipe's, and `has_gates`.
    """
    names = ("project.weight", "output_gate.weight", "out.weight", "expand.weight", "contract.weight")
    dense = [parameter for name, parameter in model.named_parameters() if name.endswith(names)]
    gates = [parameter for name, parameter in model.named_parameters() if "gate_maps" in name]
    others = [p for name, p in model.named_parameters() if not name.endswith(names) and "gate_maps" not in name]
    dtype = model.embedding.weight.dtype
    if dtype == torch.float32 and has_fast_bfloat16(model.embedding.weight.device):
        dtype = torch.bfloat16
    muon = Muon(
        [{"params": dense, "lr_ratio": recipe.dense_lr_ratio, "has_gates": False}],
        lr=recipe.max_lr,
        weight_decay=recipe.weight_decay,
        dtype=dtype,
    )
    adamw = torch.optim.AdamW(
        [
            {"params": others, "lr_ratio": 1.0, "has_gates": False},
            {"params": gates, "lr_ratio": 1.0, "has_gates": True},
        ],
        lr=recipe.max_lr,
        betas=(0.9, 0.95),
        weight_decay=0.0,
    )
    return [muon, adamw]

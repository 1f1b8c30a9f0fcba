"""Which models the kernels compute: layout `mag` with the plain delta rule, the shipped model's family."""

from __future__ import annotations

import torch

from atlas_model.memory.delta import is_delta_rule
from atlas_model.model import AtlasModel
from atlas_model.native.errors import NotCoveredError
from atlas_model.rounded_products import RoundedLinear


def check_coverage(model: AtlasModel) -> None:
    """Raises NotCoveredError, which names the first thing that the kernels do not compute."""
    config, weight = model.config, model.embedding.weight
    if weight.device.type != "cpu":
        raise NotCoveredError(f"the model is on {weight.device.type}")
    if any(isinstance(module, RoundedLinear) for module in model.modules()):
        raise NotCoveredError("the dense layers round to bfloat16")
    if config.state_dtype != str(weight.dtype).removeprefix("torch."):
        raise NotCoveredError(f"state_dtype is {config.state_dtype}, the model {weight.dtype}")
    if config.layout != "mag":
        raise NotCoveredError(f"layout {config.layout!r} is not 'mag'")
    if not is_delta_rule(config.memory):
        raise NotCoveredError("the memory's rule is not the plain delta rule")
    if config.memory.query_projection != "none":
        raise NotCoveredError("queries are projected")
    assert weight.dtype in (torch.float32, torch.float64)

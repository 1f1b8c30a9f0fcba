"""Attention windows as they were kept before they were rings, and how they become what the model reads now.

Their tokens stood in their order, the oldest first, and [window - 1, num_heads, d]. Now they are a ring, heads first
(`attention`). A segment's tokens, in `mac`, were never moved.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from atlas_model.config import AtlasConfig
from atlas_model.memory import TensorSpec
from atlas_model.state import state_spec


def spec_before_rings(config: AtlasConfig) -> dict[str, TensorSpec]:
    """As `state_spec`, of a state whose windows are in order."""
    spec = dict(state_spec(config))
    for name in _windows(config):
        heads, length, width = spec[name].shape
        spec[name] = TensorSpec((length, heads, width), spec[name].dtype)
    return spec


def to_rings(tensors: Mapping[str, Tensor], config: AtlasConfig) -> dict[str, Tensor]:
    """The tensors of a state of `spec_before_rings` as they would be kept now: new windows, and the rest itself."""
    position = tensors["position"]
    moved = dict(tensors)
    for name in _windows(config):
        ordered = tensors[name].transpose(1, 2)
        length = ordered.shape[2]
        index = (torch.arange(length, device=position.device) - position[:, None]) % max(1, length)
        moved[name] = ordered.gather(2, index[:, None, :, None].expand_as(ordered))
    return moved


def _windows(config: AtlasConfig) -> list[str]:
    return [] if config.layout == "mac" else [name for name in state_spec(config) if ".attention." in name]

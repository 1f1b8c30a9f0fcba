"""Two models of the same weights, for whoever puts other layers into one of them."""

from __future__ import annotations

import copy

from atlas_model.model import AtlasModel


def with_shared_weights(model: AtlasModel) -> AtlasModel:
    """A model with modules of its own and the very parameters and buffers of the other."""
    return copy.deepcopy(model, {id(each): each for each in (*model.parameters(), *model.buffers())})

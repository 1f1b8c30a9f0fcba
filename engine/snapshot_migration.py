"""What older schemas of a snapshot store otherwise, and how it becomes what the model reads now.

Schemas 1 and 2 have the tokens of an attention window in their order, the oldest first, and [window - 1, num_heads, d].
Since schema 3 they are a ring, heads first. A segment's tokens, in `mac`, were never moved.
"""

from collections.abc import Mapping

from torch import Tensor

from atlas_model.config import AtlasConfig
from atlas_model.memory import TensorSpec
from atlas_model.state import state_spec

_FIRST_WITH_RING = 3


def spec_of_schema(config: AtlasConfig, schema: int) -> Mapping[str, TensorSpec]:
    """As `state_spec`, of a state that a snapshot of that schema holds."""
    spec = dict(state_spec(config))
    for name in _moved(config, schema):
        heads, length, width = spec[name].shape
        spec[name] = TensorSpec((length, heads, width), spec[name].dtype)
    return spec


def migrate(tensors: Mapping[str, Tensor], config: AtlasConfig, schema: int) -> dict[str, Tensor]:
    """The tensors of one state [1, ...] as they would be stored now; those that need no change are the very tensors."""
    position = int(tensors["position"])
    migrated = dict(tensors)
    for name in _moved(config, schema):
        ordered = tensors[name].transpose(1, 2)
        migrated[name] = ordered.roll(position % max(1, ordered.shape[2]), 2).contiguous()
    return migrated


def _moved(config: AtlasConfig, schema: int) -> list[str]:
    if schema >= _FIRST_WITH_RING or config.layout == "mac":
        return []
    return [name for name in state_spec(config) if ".attention." in name]

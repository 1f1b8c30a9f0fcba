"""What older schemas of a snapshot store otherwise, and how it becomes what the model reads now.

Schemas 1 and 2 have the tokens of an attention window in their order; since schema 3 they are a ring.
"""

from collections.abc import Mapping

from torch import Tensor

from atlas_model.config import AtlasConfig
from atlas_model.memory import TensorSpec
from atlas_model.state import state_spec
from atlas_model.state_migration import spec_before_rings, to_rings

_FIRST_WITH_RING = 3


def spec_of_schema(config: AtlasConfig, schema: int) -> Mapping[str, TensorSpec]:
    """As `state_spec`, of a state that a snapshot of that schema holds."""
    return state_spec(config) if schema >= _FIRST_WITH_RING else spec_before_rings(config)


def migrate(tensors: Mapping[str, Tensor], config: AtlasConfig, schema: int) -> Mapping[str, Tensor]:
    """The tensors of one state [1, ...] as they would be stored now; those that need no change are the very tensors."""
    return tensors if schema >= _FIRST_WITH_RING else to_rings(tensors, config)

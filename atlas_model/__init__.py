"""What an Atlas model computes, and the text it reads: no sessions, no HTTP, no clock."""

from atlas_model.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from atlas_model.config import AtlasConfig, AttentionConfig, ConfigError, MemoryConfig, NewtonSchulzConfig
from atlas_model.model import AtlasModel, ModelOutput
from atlas_model.state import State, session_num_bytes, state_spec

__all__ = [
    "AtlasConfig",
    "AtlasModel",
    "AttentionConfig",
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "MemoryConfig",
    "ModelOutput",
    "NewtonSchulzConfig",
    "State",
    "load_checkpoint",
    "save_checkpoint",
    "session_num_bytes",
    "state_spec",
]

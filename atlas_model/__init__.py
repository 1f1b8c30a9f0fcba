"""What an Atlas model computes, and the text it reads: no sessions, no HTTP, no clock."""

from atlas_model.causal_lm import AtlasForCausalLM, load_state, save_state
from atlas_model.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from atlas_model.config import AtlasConfig, AttentionConfig, ConfigError, MemoryConfig, NewtonSchulzConfig
from atlas_model.gates import Gates
from atlas_model.memory import MemoryInputs
from atlas_model.model import AtlasModel, ModelOutput
from atlas_model.named_rules import named_memory
from atlas_model.neural_memory import NeuralMemory
from atlas_model.presets import PRESETS
from atlas_model.sizes import num_parameters, prefill_flops_per_token
from atlas_model.state import State, session_num_bytes, state_spec

__all__ = [
    "PRESETS",
    "AtlasConfig",
    "AtlasForCausalLM",
    "AtlasModel",
    "AttentionConfig",
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "Gates",
    "MemoryConfig",
    "MemoryInputs",
    "ModelOutput",
    "NeuralMemory",
    "NewtonSchulzConfig",
    "State",
    "load_checkpoint",
    "load_state",
    "named_memory",
    "num_parameters",
    "prefill_flops_per_token",
    "save_checkpoint",
    "save_state",
    "session_num_bytes",
    "state_spec",
]

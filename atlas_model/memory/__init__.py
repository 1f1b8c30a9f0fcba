"""The memory of one layer: one definition (MemoryRule), three forms that agree for any split of the tokens.

    naive       a loop over tokens with autograd: the oracle of the tests
    chunk       many tokens at once: training and prefill
    recurrent   one token: decode

All three have one signature, (rule, inputs, state, position) -> (outputs, state).
"""

from atlas_model.memory.chunk import chunk
from atlas_model.memory.naive import naive
from atlas_model.memory.recurrent import buffer_places, commit, insertions, read_token, recurrent
from atlas_model.memory.rule import (
    MemoryInputs,
    MemoryRule,
    MemoryState,
    TensorSpec,
    memory_network,
    memory_state_spec,
)

__all__ = [
    "MemoryInputs",
    "MemoryRule",
    "MemoryState",
    "TensorSpec",
    "buffer_places",
    "chunk",
    "commit",
    "insertions",
    "memory_network",
    "memory_state_spec",
    "naive",
    "read_token",
    "recurrent",
]

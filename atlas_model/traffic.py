"""How many bytes of the state a step has to move, computed from a configuration alone.

A decode step has to read what its token looks at and to write what its token adds; what happens only where a chunk ends
is spread evenly over the chunk's tokens. A prefill reads and writes the whole state of a row once, however long it is.
No implementation that keeps its states in memory moves less; one that shifts a buffer by a token moves more. Parameters
and what is made and used up within the step are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from atlas_model.config import AtlasConfig, MemoryConfig
from atlas_model.memory import TensorSpec
from atlas_model.state import session_num_bytes, state_spec


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes read and written for one row; means, where a step at a chunk's end moves more than the others."""

    num_bytes_read: float
    num_bytes_written: float

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.num_bytes_read + other.num_bytes_read, self.num_bytes_written + other.num_bytes_written)

    def __mul__(self, num_rows: int) -> Traffic:
        return Traffic(self.num_bytes_read * num_rows, self.num_bytes_written * num_rows)


def prefill_traffic(config: AtlasConfig) -> Traffic:
    """One row's state in and out, for a piece of a prompt of any length."""
    num_bytes = session_num_bytes(config)
    return Traffic(num_bytes, num_bytes)


def decode_traffic(config: AtlasConfig) -> Traffic:
    """One row's share of a decode step."""
    return sum(decode_traffic_by_tensor(config).values(), start=Traffic(0.0, 0.0))


def decode_traffic_by_tensor(config: AtlasConfig) -> Mapping[str, Traffic]:
    """The same for every tensor of `state_spec`, whose buffers are taken to be as full as they are on average."""
    return {name: _decode_traffic(config, name, spec) for name, spec in state_spec(config).items()}


def _decode_traffic(config: AtlasConfig, name: str, spec: TensorSpec) -> Traffic:
    num_bytes = math.prod(spec.shape) * spec.dtype.itemsize
    _, _, field = name.rpartition("layers.")
    index, _, field = field.partition(".")
    if name == "position" or field == "key_sum":
        return Traffic(num_bytes, num_bytes)
    memory = config.layer_memory(int(index))
    size = memory.memory_chunk_size
    if field.startswith("memory."):
        return Traffic(num_bytes, num_bytes / size)
    if field.startswith("momentum."):
        return Traffic(num_bytes if _looks_at_open_chunk(memory) else num_bytes / size, num_bytes / size)
    if num_bytes == 0:
        return Traffic(0.0, 0.0)
    if field in ("keys", "values", "gates"):
        a_token = num_bytes / spec.shape[1]
        before = memory.omega_window - 1
        num_read = before + (size - 1) / 2 if _looks_at_open_chunk(memory) else (before + size - 1) / size
        return Traffic(a_token * num_read, a_token)
    # The convolutions' tails and the attention's window: every place is looked at, one is new. A segment starts empty.
    if field.startswith("attention."):
        assert config.attention is not None
        num_read = num_bytes / 2 if config.layout == "mac" else num_bytes
        return Traffic(num_read, num_bytes / (config.attention.window - 1))
    return Traffic(num_bytes, num_bytes / spec.shape[0])


def _looks_at_open_chunk(config: MemoryConfig) -> bool:
    """Whether a token's reading depends on the other tokens of its chunk, and so on the momentum too."""
    return config.read_granularity == "token"

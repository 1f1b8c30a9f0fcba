"""Where each tensor of a snapshot lies, computed from a configuration and a codec alone."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from atlas_model.config import AtlasConfig
from atlas_model.memory import TensorSpec
from engine.snapshots.buffers import ALIGNMENT
from engine.snapshots.codecs import Codec, stored_spec
from engine.snapshots.header import SCHEMA_VERSION, pack_table
from engine.snapshots.migration import spec_of_schema


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor: `shape` and `strides` with a batch of one, `offset` from the first tensor's byte."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """table: what the header says of it."""

    places: tuple[Place, ...]
    num_bytes: int
    table: bytes


@lru_cache(maxsize=8)
def layouts_of(config: AtlasConfig, schema: int = SCHEMA_VERSION) -> dict[Codec, Layout]:
    """Every layout that a state of this model may be stored in."""
    return {codec: lay_out(tuple(stored_spec(spec_of_schema(config, schema), codec).items())) for codec in Codec}


@lru_cache(maxsize=8)
def lay_out(specs: tuple[tuple[str, TensorSpec], ...]) -> Layout:
    places = []
    end = 0
    for name, each in specs:
        offset = align(end, ALIGNMENT)
        strides = tuple(math.prod(each.shape[axis:]) for axis in range(len(each.shape) + 1))
        num_bytes = strides[0] * each.dtype.itemsize
        places.append(Place(name, each.dtype, (1, *each.shape), strides, offset, num_bytes))
        end = offset + num_bytes
    table = pack_table(
        (place.name, str(place.dtype).removeprefix("torch."), place.shape[1:], place.offset, place.num_bytes)
        for place in places
    )
    return Layout(tuple(places), align(end, ALIGNMENT), table)


def align(offset: int, alignment: int) -> int:
    """The next multiple of `alignment`."""
    return -(-offset // alignment) * alignment

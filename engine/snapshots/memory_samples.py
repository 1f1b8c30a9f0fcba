"""What a session's memory was like on its way: samples in constant space, and as bytes for the snapshot's header.

At most 64 are kept. When there is no room for another, every second one is dropped and the distance between those to
come doubles, so they always span the session from its first sample on, whatever its length.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_model.telemetry import LayerSample

MAX_SAMPLES = 64

_MAX_TOKENS_APART = 2**62
# NOTE: with the structs below part of the snapshot's schema: another order or number is another schema version.
_NUMBERS = (
    "norm",
    "momentum_norm",
    "distance_from_initial",
    "effective_rank",
    "top_singular_value",
    "update_norm",
    "token_gate",
    "retention",
    "global_retention",
    "inner_lr",
    "momentum_decay",
    "surprise",
    "memory_share",
)
_MAY_BE_ABSENT = frozenset({"update_norm", "memory_share"})
# How many samples of how many layers there are, and how many tokens apart the next ones are taken.
_FRAME = struct.Struct("<HHQ")
_SAMPLE = struct.Struct("<Qd")
_LAYER = struct.Struct(f"<H{len(_NUMBERS)}f")
_LAYER_RECORD = np.dtype([("layer", "<u2"), ("numbers", "<f4", (len(_NUMBERS),))])
_IS_OPTIONAL = np.array([name in _MAY_BE_ABSENT for name in _NUMBERS])


@dataclass(frozen=True, slots=True)
class MemorySample:
    """position: tokens fed before.   time: seconds since the epoch.   layers: those that have a memory, in order."""

    position: int
    time: float
    layers: tuple[LayerSample, ...]


@dataclass(frozen=True, slots=True)
class MemorySamples:
    """Kept as bytes, because they are read seldom, and loaded and stored with every turn.

    records: oldest first, all of the same layers. num_tokens_apart: from the last one to the next, at least; 0 before
    the first.
    """

    records: tuple[bytes, ...] = ()
    num_tokens_apart: int = 0

    @property
    def samples(self) -> tuple[MemorySample, ...]:
        return tuple(_unpack(record) for record in self.records)

    def is_due(self, position: int, sample_tokens: int) -> bool:
        """Whether a session at `position` should be sampled, `sample_tokens` being the setting; 0 is never."""
        last = _SAMPLE.unpack_from(self.records[-1])[0] if self.records else 0
        return sample_tokens > 0 and position - last >= max(self.num_tokens_apart, sample_tokens)

    def with_sample(self, sample: MemorySample, sample_tokens: int) -> "MemorySamples":
        apart = max(self.num_tokens_apart, sample_tokens)
        if len(self.records) < MAX_SAMPLES:
            return MemorySamples((*self.records, _pack(sample)), apart)
        return MemorySamples((*self.records[::2], _pack(sample)), 2 * apart)


NO_SAMPLES = MemorySamples()


def pack_samples(samples: MemorySamples, num_layers: int) -> bytes:
    """As many bytes for every session of a model of `num_layers` layers, however many samples it has."""
    sizes = {len(record) for record in samples.records}
    assert len(sizes) <= 1, "all samples of a session are of the same layers"
    num_sampled = (max(sizes, default=_SAMPLE.size) - _SAMPLE.size) // _LAYER.size
    frame = _FRAME.pack(len(samples.records), num_sampled, samples.num_tokens_apart)
    return b"".join((frame, *samples.records)).ljust(_num_bytes(num_layers), b"\0")


def unpack_samples(packed: bytes, num_layers: int, position: int) -> MemorySamples:
    """What `pack_samples` wrote for a session at `position`. Raises ValueError, saying what is wrong, for all else."""
    _demand(len(packed) == _num_bytes(num_layers), "their size is not the model's")
    num_samples, num_sampled, apart = _FRAME.unpack_from(packed)
    _demand(num_samples <= MAX_SAMPLES and num_sampled <= num_layers, "there are too many")
    _demand((num_samples > 0) == (apart > 0) and apart <= _MAX_TOKENS_APART, "their distance is impossible")
    record = _record(num_sampled)
    end = _FRAME.size + num_samples * record.itemsize
    _demand(packed.count(0, end) == len(packed) - end, "something stands behind the last")
    if num_samples == 0:
        return NO_SAMPLES
    _check(np.frombuffer(packed, record, num_samples, _FRAME.size), num_layers, position)
    starts = range(_FRAME.size, end, record.itemsize)
    return MemorySamples(tuple(packed[start : start + record.itemsize] for start in starts), apart)


@lru_cache(maxsize=8)
def _record(num_sampled: int) -> np.dtype[np.void]:
    """One sample of so many layers, as it is packed."""
    return np.dtype([("position", "<u8"), ("time", "<f8"), ("layers", _LAYER_RECORD, (num_sampled,))])


def _check(records: NDArray[np.void], num_layers: int, position: int) -> None:
    positions, times, layers = records["position"], records["time"], records["layers"]
    rises = (positions[1:] > positions[:-1]).all() and (positions > 0).all() and (positions <= position).all()
    _demand(bool(rises), "their positions do not rise to the session's")
    _demand(bool(((times >= 0) & (times < 2**53)).all()), "a time is impossible")
    indices, numbers = layers["layer"], layers["numbers"]
    is_ours = (indices[:, 1:] > indices[:, :-1]).all() and (indices < num_layers).all()
    _demand(bool(is_ours), "a layer is not the model's")
    _demand(bool((np.isfinite(numbers) | (np.isnan(numbers) & _IS_OPTIONAL)).all()), "a number is not finite")


def _pack(sample: MemorySample) -> bytes:
    packed = bytearray(_SAMPLE.pack(sample.position, sample.time))
    for layer in sample.layers:
        numbers = (getattr(layer, name) for name in _NUMBERS)
        packed += _LAYER.pack(layer.layer, *(math.nan if number is None else number for number in numbers))
    return bytes(packed)


def _unpack(record: bytes) -> MemorySample:
    position, time = _SAMPLE.unpack_from(record)
    layers = []
    for index, *numbers in _LAYER.iter_unpack(record[_SAMPLE.size :]):
        told: Iterator[Any] = (None if math.isnan(number) else number for number in numbers)
        layers.append(LayerSample(layer=index, **dict(zip(_NUMBERS, told, strict=True))))
    return MemorySample(position, time, tuple(layers))


def _num_bytes(num_layers: int) -> int:
    return _FRAME.size + MAX_SAMPLES * (_SAMPLE.size + num_layers * _LAYER.size)


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)

"""What a session's memory was like on its way: samples in constant space, and as bytes for the snapshot's header.

At most 64 are kept. When there is no room for another, every second one is dropped and the distance between those to
come doubles, so they always span the session from its first sample on, whatever its length.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True)
class MemorySample:
    """position: tokens fed before.   time: seconds since the epoch.   layers: those that have a memory, in order."""

    position: int
    time: float
    layers: tuple[LayerSample, ...]


@dataclass(frozen=True, slots=True)
class MemorySamples:
    """Oldest first. num_tokens_apart: between the last one and the next, at least; 0 before the first."""

    samples: tuple[MemorySample, ...] = ()
    num_tokens_apart: int = 0

    def is_due(self, position: int, sample_tokens: int) -> bool:
        """Whether a session at `position` should be sampled, `sample_tokens` being the setting; 0 is never."""
        last = self.samples[-1].position if self.samples else 0
        return sample_tokens > 0 and position - last >= max(self.num_tokens_apart, sample_tokens)

    def with_sample(self, sample: MemorySample, sample_tokens: int) -> "MemorySamples":
        apart = max(self.num_tokens_apart, sample_tokens)
        if len(self.samples) < MAX_SAMPLES:
            return MemorySamples((*self.samples, sample), apart)
        return MemorySamples((*self.samples[::2], sample), 2 * apart)


NO_SAMPLES = MemorySamples()


def pack_samples(samples: MemorySamples, num_layers: int) -> bytes:
    """As many bytes for every session of a model of `num_layers` layers, however many samples it has."""
    sampled = {len(sample.layers) for sample in samples.samples}
    assert len(sampled) <= 1, "all samples of a session are of the same layers"
    packed = bytearray(_FRAME.pack(len(samples.samples), max(sampled, default=0), samples.num_tokens_apart))
    for sample in samples.samples:
        packed += _SAMPLE.pack(sample.position, sample.time)
        for layer in sample.layers:
            numbers = (getattr(layer, name) for name in _NUMBERS)
            packed += _LAYER.pack(layer.layer, *(math.nan if number is None else number for number in numbers))
    return bytes(packed).ljust(_num_bytes(num_layers), b"\0")


def unpack_samples(packed: bytes, num_layers: int, position: int) -> MemorySamples:
    """What `pack_samples` wrote for a session at `position`. Raises ValueError, saying what is wrong, for all else."""
    _demand(len(packed) == _num_bytes(num_layers), "their size is not the model's")
    num_samples, num_sampled, apart = _FRAME.unpack_from(packed)
    sample_num_bytes = _SAMPLE.size + num_sampled * _LAYER.size
    end = _FRAME.size + num_samples * sample_num_bytes
    _demand(num_samples <= MAX_SAMPLES and num_sampled <= num_layers, "there are too many")
    _demand(not any(packed[end:]), "something stands behind the last")
    _demand((num_samples > 0) == (apart > 0) and apart <= _MAX_TOKENS_APART, "their distance is impossible")
    samples: list[MemorySample] = []
    for offset in range(_FRAME.size, end, sample_num_bytes):
        at, time = _SAMPLE.unpack_from(packed, offset)
        previous = samples[-1].position if samples else 0
        _demand(previous < at <= position, "their positions do not rise to the session's")
        _demand(0 <= time < 2**53, "a time is impossible")
        layers = tuple(_layers(packed[offset + _SAMPLE.size : offset + sample_num_bytes]))
        indices = [layer.layer for layer in layers]
        _demand(indices == sorted(set(indices)) and max(indices, default=0) < num_layers, "a layer is not the model's")
        samples.append(MemorySample(at, time, layers))
    return MemorySamples(tuple(samples), apart)


def _layers(packed: bytes) -> Iterator[LayerSample]:
    for index, *numbers in _LAYER.iter_unpack(packed):
        named: dict[str, Any] = dict(zip(_NUMBERS, numbers, strict=True))
        absent = {name: None for name in _MAY_BE_ABSENT if math.isnan(named[name])}
        named |= absent
        _demand(all(math.isfinite(named[name]) for name in named if name not in absent), "a number is not finite")
        yield LayerSample(layer=index, **named)


def _num_bytes(num_layers: int) -> int:
    return _FRAME.size + MAX_SAMPLES * (_SAMPLE.size + num_layers * _LAYER.size)


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)

"""Tiny states with every kind of bit pattern, and snapshots that lie but carry correct checksums."""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from hashlib import blake2b
from typing import Any, Literal

import msgpack
import torch
from torch import Tensor

from atlas_model.config import AtlasConfig, AttentionConfig, MemoryConfig
from atlas_model.memory import TensorSpec
from atlas_model.state import State, state_spec
from atlas_model.telemetry import LayerSample
from engine.sequence import SequenceState
from engine.snapshots.checksums import digest, part_checksum
from engine.snapshots.header import OpenIngest
from engine.snapshots.memory_samples import MAX_SAMPLES, NO_SAMPLES, MemorySample, MemorySamples
from engine.snapshots.snapshot import SessionRecord, encode_snapshot

FINGERPRINT = "0123456789abcdef"
PART_NUM_BYTES = 4096
StateDtype = Literal["float32", "bfloat16", "float64"]

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def tiny_config(state_dtype: StateDtype = "float32") -> AtlasConfig:
    memory = MemoryConfig(2, 4, 4, network="mlp", memory_chunk_size=4, feature_degree=2, feature_width=2)
    attention = AttentionConfig(num_heads=2, window=5)
    return AtlasConfig(300, 16, 2, 24, "mag", memory, attention, state_dtype=state_dtype)


def random_state(config: AtlasConfig, position: int, seed: int = 0) -> State:
    """Any bit pattern whatever: NaNs with payloads, infinities, -0.0 and subnormals are all among them."""
    generator = torch.Generator().manual_seed(seed)

    def random_bits(spec: TensorSpec) -> Tensor:
        shape = (1, *spec.shape, spec.dtype.itemsize)
        bits = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return bits.view(spec.dtype).reshape(1, *spec.shape)

    tensors = {name: random_bits(spec) for name, spec in state_spec(config).items()}
    tensors["position"] = torch.tensor([position])
    for name in [name for name in tensors if name.endswith("memory.w_in")]:
        tensors[name].view(-1)[:3] = torch.tensor([-0.0, float("inf"), float("nan")])
    return State.from_named_tensors(config, tensors)


def random_samples(config: AtlasConfig, position: int, seed: int) -> MemorySamples:
    """As many as there may be, up to that position; a number that may be absent is, here and there."""
    generator = torch.Generator().manual_seed(seed)
    apart = position // MAX_SAMPLES
    samples = NO_SAMPLES
    for index in range(MAX_SAMPLES if apart else 0):
        layers = []
        for layer in range(config.num_layers):
            numbers: list[Any] = torch.randn(len(fields(LayerSample)) - 1, generator=generator).tolist()
            told = LayerSample(layer, *numbers)
            layers.append(replace(told, update_norm=None) if index % 3 == layer else told)
        sample = MemorySample((index + 1) * apart, 1e9 + index + seed / 8, tuple(layers))
        samples = samples.with_sample(sample, apart)
    return samples


def full_record(config: AtlasConfig, position: int = 123_456, seed: int = 0) -> SessionRecord:
    return SessionRecord(
        state=SequenceState(
            random_state(config, position, seed), bytes(range(16)), (7, 299), random_samples(config, position, seed)
        ),
        ledger=tuple(bytes([index]) * 16 for index in range(5)),
        system_digest=b"s" * 16,
        open_ingest=OpenIngest("document-1", 10**12, b"d" * 16),
        metadata={"título": "señal \U0001f9ed"},
        created=1234.5678,
    )


def finite_record(config: AtlasConfig) -> SessionRecord:
    """The same, of numbers that can be coded: normal ones, and of each tensor the first is large and the next zero."""
    generator = torch.Generator().manual_seed(0)
    tensors = full_record(config).state.tensors.named_tensors()
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
            tensors[name].view(-1)[:2] = torch.tensor([1000.0, 0.0])
    record = full_record(config)
    return replace(record, state=replace(record.state, tensors=State.from_named_tensors(config, tensors)))


def full_snapshot(config: AtlasConfig) -> bytes:
    return b"".join(encode_snapshot(full_record(config), FINGERPRINT, PART_NUM_BYTES).parts)


def equal_bits(left: Tensor, right: Tensor) -> bool:
    bits = _BITS[left.dtype.itemsize]
    return left.dtype == right.dtype and torch.equal(left.contiguous().view(bits), right.contiguous().view(bits))


def tensor_digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """blake2b-128 of every tensor's bytes, in hex."""
    raw = {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}
    return {name: blake2b(each, digest_size=16).hexdigest() for name, each in raw.items()}


def samples_digest(samples: MemorySamples) -> str:
    """blake2b-128 of every sample's numbers as JSON, in hex."""
    return blake2b(json.dumps([asdict(sample) for sample in samples.samples]).encode(), digest_size=16).hexdigest()


def header_end(snapshot: bytes) -> int:
    num_bytes: int = struct.unpack_from("<4sI", snapshot)[1]
    return 8 + num_bytes


def with_header_bytes(snapshot: bytes, packed: bytes) -> bytes:
    """The snapshot with another header, sealed as if it were ours; `packed` ends with 16 bytes for the digest."""
    framed = struct.pack("<4sI", b"ATLS", len(packed)) + packed[:-16]
    data = snapshot[-(-header_end(snapshot) // 4096) * 4096 :]
    sealed = framed + digest(framed)
    return sealed + bytes(-len(sealed) % 4096) + data


def with_header(snapshot: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The snapshot with a changed header, sealed as if it were ours."""
    fields = msgpack.unpackb(snapshot[8 : header_end(snapshot)])
    changed = change(fields)
    fields = changed if isinstance(changed, dict) else fields
    fields.setdefault("digest", bytes(16))
    return with_header_bytes(snapshot, msgpack.packb(fields))


def with_tensor_bytes(snapshot: bytes, name: str, raw: bytes) -> bytes:
    """A snapshot of one part whose tensor begins with other bytes, sealed as if it were ours."""
    end = header_end(snapshot)
    rows = msgpack.unpackb(msgpack.unpackb(snapshot[8:end])["tensors"])
    offset, num_bytes = next((offset, num_bytes) for each, _, _, offset, num_bytes in rows if each == name)
    assert len(raw) <= num_bytes
    start = -(-end // 4096) * 4096 + offset
    changed = snapshot[:start] + raw + snapshot[start + len(raw) :]
    return with_header(changed, lambda fields: fields.update(part_checksums=part_checksum(changed[end:])))


def in_order(ring: Tensor, position: int) -> Tensor:
    """An attention window [num_heads, window - 1, d] as schemas 1 and 2 have it: by age, the oldest first."""
    length = ring.shape[1]
    return torch.stack([ring[:, (position + index) % length] for index in range(length)])


def as_schema_1(snapshot: bytes) -> bytes:
    """A snapshot of one part as it was written before there were samples of the memory, and rings."""
    fields = msgpack.unpackb(snapshot[8 : header_end(snapshot)])
    data = bytearray(snapshot[-(-header_end(snapshot) // 4096) * 4096 :])
    table = msgpack.unpackb(fields["tensors"])
    for row in table:
        name, _, shape, offset, num_bytes = row
        if ".attention." in name:
            raw = torch.frombuffer(data, dtype=torch.uint8, offset=offset, count=num_bytes)
            ordered = in_order(raw.view(*shape[:2], -1), fields["position"])
            data[offset : offset + num_bytes] = ordered.numpy().tobytes()
            row[2] = [shape[1], shape[0], shape[2]]
    fields["tensors"] = msgpack.packb(table)
    del fields["memory_samples"]
    fields["schema"] = 1
    behind_header = bytes(-(8 + len(msgpack.packb(fields))) % 4096) + bytes(data)
    fields["part_checksums"] = part_checksum(behind_header)
    return with_header_bytes(snapshot[: -len(data)] + bytes(data), msgpack.packb(fields))

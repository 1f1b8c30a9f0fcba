"""A session as bytes, and back, bit for bit; with a codec that rounds, to the bits of `coded_record`.

    "ATLS" | u32 header length | msgpack header | zeros up to a multiple of 4,096 | raw little-endian tensors

Tensors are 64-byte aligned and lie in the order of `stored_spec`. The bytes are cut into parts of `part_num_bytes`; the
header has an xxh3-64 of each (of what lies behind the header, in the first) and ends with an xxh3-128 of everything
before it, so every byte is covered and a flipped one is found before it is parsed. The layout is recomputed from our
own configuration, for each codec, and one of them must equal the header's before anything is allocated: that also says
which codec wrote the bytes, so any is read, whichever is written.

The size depends on the model, and within bounds on the ledger, never on how much was read. Draws are counter-based on
(seed, position), so no sampler state is stored. What the numbers mean, and whether they are finite, is not judged here.
"""

import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from atlas_model.config import AtlasConfig
from atlas_model.memory import TensorSpec
from atlas_model.state import State
from engine.errors import InvalidState, StateCorrupt, StateModelMismatch
from engine.sequence import SequenceState
from engine.snapshots.buffers import ALIGNMENT, aligned_buffer
from engine.snapshots.checksums import DIGEST_NUM_BYTES, PART_CHECKSUM_NUM_BYTES, digest, part_checksum
from engine.snapshots.codecs import Codec, code, coded, decode
from engine.snapshots.header import MAX_HEADER_NUM_BYTES, Header, OpenIngest, unpack
from engine.snapshots.layout import Layout, align, lay_out, layouts_of
from engine.snapshots.lazy_parts import Extent, LazyParts, ScatteredBytes
from engine.snapshots.memory_samples import NO_SAMPLES, MemorySamples, pack_samples, unpack_samples
from engine.snapshots.migration import migrate, spec_of_schema

__all__ = [
    "OpenIngest",
    "SessionRecord",
    "Snapshot",
    "coded_record",
    "decode_snapshot",
    "encode_snapshot",
    "max_snapshot_num_bytes",
]

Buffer = bytes | bytearray | memoryview

_MAGIC = b"ATLS"
_FRAME = struct.Struct("<4sI")
_PAGE_NUM_BYTES = 4096


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """Everything that one generation of a session holds.

    ledger: digests of the messages of committed turns, oldest first, at most 1,024.
    system_digest: of the system messages that were fed last.
    created: seconds since the epoch.
    """

    state: SequenceState
    ledger: tuple[bytes, ...] = ()
    system_digest: bytes | None = None
    open_ingest: OpenIngest | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`parts` are put together from the state's own memory as they are asked for. `digest` (hex) covers every byte."""

    parts: LazyParts
    digest: str

    @property
    def num_bytes(self) -> int:
        return self.parts.num_bytes


def coded_record(record: SessionRecord, config: AtlasConfig, codec: Codec) -> SessionRecord:
    """The record that its snapshot is decoded to: itself without a codec, else one with a new State, rounded. Of that,
    the coded record is the same bits again. Raises `InvalidState` for numbers that cannot be coded."""
    if codec is Codec.NONE:
        return record
    tensors = State.from_named_tensors(config, coded(record.state.tensors.named_tensors(), codec))
    return replace(record, state=replace(record.state, tensors=tensors))


def encode_snapshot(
    record: SessionRecord, fingerprint: str, part_num_bytes: int, codec: Codec = Codec.NONE
) -> Snapshot:
    """Without a codec, reads each tensor once, for the checksums, and copies none; the parts are good as long as nobody
    changes them. With one, the coded tensors are kept beside the state: half or a quarter of its memory.

    Raises `InvalidState` when the record is beyond the header's bounds, or has numbers that cannot be coded.
    """
    assert sys.byteorder == "little"
    assert record.state.tensors.batch_size == 1
    tensors = code(record.state.tensors.named_tensors(), codec)
    layout = lay_out(tuple((name, TensorSpec(tuple(t.shape[1:]), t.dtype)) for name, t in tensors.items()))

    samples = pack_samples(record.state.memory_samples, len(record.state.tensors.layers))
    num_parts = -(-layout.num_bytes // part_num_bytes)
    while True:
        header = Header(
            fingerprint=fingerprint,
            position=record.state.position,
            tokens_digest=record.state.tokens_digest,
            pending_token_ids=record.state.pending_token_ids,
            ledger=record.ledger,
            system_digest=record.system_digest,
            open_ingest=record.open_ingest,
            metadata=record.metadata,
            created=record.created,
            memory_samples=samples,
            tensors=layout.table,
            part_num_bytes=part_num_bytes,
            part_checksums=(bytes(PART_CHECKSUM_NUM_BYTES),) * num_parts,
        )
        packed = header.pack()
        header_end = _FRAME.size + len(packed)
        data_start = align(header_end, _PAGE_NUM_BYTES)
        num_bytes = data_start + layout.num_bytes
        # The number of checksums moves the size, which moves their number: at most a few rounds.
        if num_parts == -(-num_bytes // part_num_bytes):
            break
        num_parts = -(-num_bytes // part_num_bytes)

    extents = [
        Extent(data_start + place.offset, _raw_bytes(tensor))
        for place, tensor in zip(layout.places, tensors.values(), strict=True)
    ]
    return _seal(extents, num_bytes, header, header_end)


def decode_snapshot(
    parts: Sequence[Buffer], config: AtlasConfig, fingerprint: str, expected_digest: str | None = None
) -> SessionRecord:
    """The record whose snapshot the parts, put together, are; however they are cut, and whichever codec wrote them.

    Without a codec the tensors lie in the buffer itself when it is one, writable and aligned; otherwise in one copy of
    it, but for those that an older schema stored otherwise. Coded ones are decoded into memory of their own, and the
    buffer is not held.
    Raises `StateCorrupt` (flipped, cut or added bytes, or not the snapshot that `expected_digest` names),
    `StateModelMismatch`, `StateTooNew`, and `InvalidState` for bytes that are whole and still no state of this model.
    """
    assert sys.byteorder == "little"
    views = [memoryview(part).cast("B") for part in parts]
    num_bytes = sum(view.nbytes for view in views)
    header, header_end = _open(views, num_bytes, expected_digest)
    if header.fingerprint != fingerprint:
        raise StateModelMismatch(header.fingerprint, fingerprint)

    codec, layout = _find_layout(config, header)
    if any(token_id >= config.vocab_size for token_id in header.pending_token_ids):
        raise InvalidState("the snapshot has pending tokens that are not in the vocabulary")
    data_start = align(header_end, _PAGE_NUM_BYTES)
    if num_bytes != data_start + layout.num_bytes:
        raise StateCorrupt("the snapshot was cut or has bytes behind its end")
    if len(header.part_checksums) != -(-num_bytes // header.part_num_bytes):
        raise InvalidState("the snapshot has not as many checksums as parts")

    view, raw = _as_one(views, num_bytes)
    spans = _spans(num_bytes, header_end, header.part_num_bytes)
    if tuple(part_checksum(view[start:end]) for start, end in spans) != header.part_checksums:
        raise StateCorrupt("the snapshot's bytes do not match their checksums")
    # The whole buffer once as each dtype, and the tensors as windows of it: all offsets are multiples of every size.
    typed = {dtype: raw.view(dtype) for dtype in {place.dtype for place in layout.places}}
    stored = {
        place.name: torch.as_strided(
            typed[place.dtype], place.shape, place.strides, (data_start + place.offset) // place.dtype.itemsize
        )
        for place in layout.places
    }
    tensors = decode(stored, spec_of_schema(config, header.schema), codec)
    state = SequenceState(
        tensors=State.from_named_tensors(config, migrate(tensors, config, header.schema)),
        tokens_digest=header.tokens_digest,
        pending_token_ids=header.pending_token_ids,
        memory_samples=_samples(header, config.num_layers),
    )
    if state.position != header.position:
        raise InvalidState("the snapshot's header and its tensors name different positions")
    return SessionRecord(
        state=state,
        ledger=header.ledger,
        system_digest=header.system_digest,
        open_ingest=header.open_ingest,
        metadata=header.metadata,
        created=header.created,
    )


def max_snapshot_num_bytes(config: AtlasConfig) -> int:
    """No snapshot of a session of this model is larger, whatever it has read."""
    largest = max(layout.num_bytes for layout in layouts_of(config).values())
    return align(_FRAME.size + MAX_HEADER_NUM_BYTES, _PAGE_NUM_BYTES) + largest


def _find_layout(config: AtlasConfig, header: Header) -> tuple[Codec, Layout]:
    for codec, layout in layouts_of(config, header.schema).items():
        if header.tensors == layout.table:
            return codec, layout
    raise InvalidState("the snapshot's tensors are not laid out as this model's configuration demands")


def _seal(extents: Sequence[Extent], num_bytes: int, header: Header, header_end: int) -> Snapshot:
    """The header, with all checksums, in front of the tensors."""
    data = ScatteredBytes(extents, num_bytes)
    checksums = tuple(
        part_checksum(*data.views(start, end)) for start, end in _spans(num_bytes, header_end, header.part_num_bytes)
    )
    packed = replace(header, part_checksums=checksums).pack()
    assert _FRAME.size + len(packed) == header_end
    beginning = _FRAME.pack(_MAGIC, len(packed)) + packed[:-DIGEST_NUM_BYTES]
    sealed = digest(beginning)
    whole = ScatteredBytes([Extent(0, memoryview(beginning + sealed)), *extents], num_bytes)
    return Snapshot(LazyParts(whole, header.part_num_bytes), sealed.hex())


def _open(views: Sequence[memoryview], num_bytes: int, expected_digest: str | None) -> tuple[Header, int]:
    """The header, once its digest holds, and the offset of its end."""
    if num_bytes < _FRAME.size:
        raise StateCorrupt("the snapshot was cut")
    magic, header_num_bytes = _FRAME.unpack(_beginning(views, _FRAME.size))
    if magic != _MAGIC:
        raise StateCorrupt("these bytes are not a snapshot")
    header_end = _FRAME.size + header_num_bytes
    if not DIGEST_NUM_BYTES <= header_num_bytes <= MAX_HEADER_NUM_BYTES or header_end > num_bytes:
        raise StateCorrupt("the snapshot's header has an impossible length")
    beginning = _beginning(views, header_end)
    found = beginning[-DIGEST_NUM_BYTES:]
    if digest(memoryview(beginning)[:-DIGEST_NUM_BYTES]) != found:
        raise StateCorrupt("the snapshot's header does not match its digest")
    if expected_digest is not None and found.hex() != expected_digest:
        raise StateCorrupt("the snapshot is another one than the session's head names")
    return unpack(beginning[_FRAME.size :]), header_end


def _samples(header: Header, num_layers: int) -> MemorySamples:
    """None in a snapshot from before there were any."""
    if header.memory_samples is None:
        return NO_SAMPLES
    try:
        return unpack_samples(header.memory_samples, num_layers, header.position)
    except ValueError as error:
        raise InvalidState(f"the snapshot's header has bad memory_samples: {error}") from error


def _beginning(views: Sequence[memoryview], num_bytes: int) -> bytes:
    collected = bytearray()
    for view in views:
        collected += view[: num_bytes - len(collected)]
    return bytes(collected)


def _spans(num_bytes: int, header_end: int, part_num_bytes: int) -> Iterator[tuple[int, int]]:
    """What each part's checksum is over: what lies behind the header, which has its own digest."""
    for start in range(0, num_bytes, part_num_bytes):
        yield max(start, header_end), max(min(start + part_num_bytes, num_bytes), header_end)


def _as_one(views: Sequence[memoryview], num_bytes: int) -> tuple[memoryview, Tensor]:
    """All bytes in one writable, aligned buffer, and the same memory as a uint8 tensor."""
    if len(views) == 1 and not views[0].readonly:
        raw = torch.frombuffer(views[0], dtype=torch.uint8)
        if raw.data_ptr() % ALIGNMENT == 0:
            return views[0], raw
    joined = aligned_buffer(num_bytes)
    start = 0
    for view in views:
        joined[start : start + view.nbytes] = view
        start += view.nbytes
    return joined, torch.frombuffer(joined, dtype=torch.uint8)


def _raw_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes without a copy when it is contiguous, as it is in a State."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data

import random
import tracemalloc
from dataclasses import replace

import pytest
import torch

from atlas_model.config import AttentionConfig
from atlas_model.state import State, state_spec
from engine.sequence import SequenceState
from engine.snapshots.lazy_parts import Extent, LazyParts, ScatteredBytes
from engine.snapshots.snapshot import SessionRecord, encode_snapshot
from tests.engine.snapshot_cases import FINGERPRINT, tiny_config


def scattered(seed: int) -> tuple[ScatteredBytes, bytes]:
    """Extents with gaps of every kind, an empty one among them, and the row of bytes that they stand for."""
    rng = random.Random(seed)
    extents, plain = [], bytearray()
    for size in (0, 1, 64, 0, 700, 5000, 3):
        plain += bytes(rng.choice([0, 0, 1, 63, 9000]))
        extents.append(Extent(len(plain), memoryview(rng.randbytes(size))))
        plain += extents[-1].view
    plain += bytes(rng.choice([0, 17, 9000]))
    return ScatteredBytes(extents, len(plain)), bytes(plain)


@pytest.mark.parametrize("seed", range(8))
def test_every_span_of_scattered_bytes_is_that_of_the_plain_ones(seed: int) -> None:
    data, plain = scattered(seed)
    rng = random.Random(seed)
    for _ in range(200):
        start, end = sorted(rng.choices(range(len(plain) + 1), k=2))
        assert b"".join(data.views(start, end)) == plain[start:end]
    assert b"".join(data.views(0, len(plain))) == plain


@pytest.mark.parametrize("part_num_bytes", [1, 63, 64, 4096, 10**6])
def test_parts_are_the_bytes_cut_evenly_and_the_same_each_time(part_num_bytes: int) -> None:
    data, plain = scattered(3)
    parts = LazyParts(data, part_num_bytes)
    expected = [plain[start : start + part_num_bytes] for start in range(0, len(plain), part_num_bytes)]
    assert len(parts) == len(expected)
    for _ in range(2):
        assert [bytes(part) for part in parts] == expected
    assert bytes(parts[-1]) == expected[-1]
    assert [bytes(part) for part in parts[1:3]] == expected[1:3]
    with pytest.raises(IndexError):
        parts[len(parts)]


def test_a_part_that_lies_in_one_extent_is_no_copy_and_cannot_be_written_to() -> None:
    memory = bytearray(b"abcdefgh")
    parts = LazyParts(ScatteredBytes([Extent(0, memoryview(memory)), Extent(8, memoryview(b"rest"))], 12), 4)
    assert all(part.readonly for part in parts)
    within = parts[1]
    memory[4:8] = b"EFGH"
    assert bytes(within) == b"EFGH"


def test_encoding_and_handing_out_part_by_part_takes_two_parts_of_memory_however_large_the_state_is() -> None:
    part_num_bytes = 2**20
    for window in (60_000, 600_000):
        config = replace(tiny_config(), attention=AttentionConfig(num_heads=2, window=window))
        tensors = {name: torch.zeros(1, *each.shape, dtype=each.dtype) for name, each in state_spec(config).items()}
        record = SessionRecord(SequenceState(State.from_named_tensors(config, tensors), bytes(16)))
        tracemalloc.start()
        try:
            snapshot = encode_snapshot(record, FINGERPRINT, part_num_bytes)
            num_bytes = sum(part.nbytes for part in snapshot.parts)
            _, peak_num_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert num_bytes == snapshot.num_bytes > 128 * window
        assert peak_num_bytes < 2.5 * part_num_bytes

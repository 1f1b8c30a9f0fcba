import random

import pytest
import torch

from atlas_model.state import session_num_bytes
from engine.errors import InvalidState, StateCorrupt, StateModelMismatch
from engine.sequence import SequenceState
from engine.snapshots.buffers import aligned_buffer
from engine.snapshots.header import MAX_LEDGER, OpenIngest
from engine.snapshots.snapshot import SessionRecord, decode_snapshot, encode_snapshot
from tests.engine.snapshot_cases import (
    FINGERPRINT,
    PART_NUM_BYTES,
    StateDtype,
    as_schema_1,
    equal_bits,
    full_record,
    full_snapshot,
    header_end,
    random_state,
    tiny_config,
)

DTYPES: list[StateDtype] = ["float32", "bfloat16", "float64"]


def assert_same_record(left: SessionRecord, right: SessionRecord) -> None:
    left_tensors, right_tensors = left.state.tensors.named_tensors(), right.state.tensors.named_tensors()
    assert list(left_tensors) == list(right_tensors)
    for name, tensor in left_tensors.items():
        assert equal_bits(tensor, right_tensors[name]), name
    for field in ("ledger", "system_digest", "open_ingest", "metadata", "created"):
        assert getattr(left, field) == getattr(right, field), field
    for field in ("tokens_digest", "pending_token_ids", "position", "memory_samples"):
        assert getattr(left.state, field) == getattr(right.state, field), field


@pytest.mark.parametrize("state_dtype", DTYPES)
@pytest.mark.parametrize("part_num_bytes", [1024, 4095, 4096, 2**20])
def test_a_record_comes_back_bit_for_bit(state_dtype: StateDtype, part_num_bytes: int) -> None:
    config = tiny_config(state_dtype)
    record = full_record(config)
    snapshot = encode_snapshot(record, FINGERPRINT, part_num_bytes)
    assert snapshot.num_bytes == sum(part.nbytes for part in snapshot.parts)
    assert {part.nbytes for part in snapshot.parts[:-1]} <= {part_num_bytes}
    assert_same_record(decode_snapshot(snapshot.parts, config, FINGERPRINT, snapshot.digest), record)


@pytest.mark.parametrize("state_dtype", DTYPES)
@pytest.mark.parametrize("position", [0, 3, 4, 123_457, 123_458])
def test_a_window_that_an_older_schema_stored_in_its_order_becomes_the_ring(
    state_dtype: StateDtype, position: int
) -> None:
    config = tiny_config(state_dtype)
    record = full_record(config, position)
    snapshot = b"".join(encode_snapshot(record, FINGERPRINT, 2**20).parts)
    old = decode_snapshot([as_schema_1(snapshot)], config, FINGERPRINT)
    tensors = record.state.tensors.named_tensors()
    for name, tensor in old.state.tensors.named_tensors().items():
        assert equal_bits(tensor, tensors[name]), name


def test_the_test_states_hold_nans_with_payloads_infinities_and_negative_zeros() -> None:
    tensors = random_state(tiny_config(), 0).named_tensors()
    values = torch.cat([tensor.reshape(-1) for tensor in tensors.values() if tensor.dtype == torch.float32])
    nan_bits = values.view(torch.int32)[values.isnan()]
    assert len(set(nan_bits.tolist())) > 1
    assert bool(values.isinf().any())
    assert bool(((values == 0) & values.signbit()).any())


@pytest.mark.parametrize("state_dtype", DTYPES)
def test_encoding_twice_gives_the_same_bytes(state_dtype: StateDtype) -> None:
    assert full_snapshot(tiny_config(state_dtype)) == full_snapshot(tiny_config(state_dtype))


def test_a_minimal_record_comes_back() -> None:
    config = tiny_config()
    record = SessionRecord(SequenceState(random_state(config, 0), bytes(16)))
    assert_same_record(decode_snapshot(encode_snapshot(record, FINGERPRINT, 4096).parts, config, FINGERPRINT), record)


def test_how_the_bytes_are_cut_into_buffers_does_not_matter() -> None:
    config = tiny_config()
    record = full_record(config)
    whole = full_snapshot(config)
    for size in (1, 7, 1000, PART_NUM_BYTES, len(whole)):
        pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
        assert_same_record(decode_snapshot(pieces, config, FINGERPRINT), record)
    assert_same_record(decode_snapshot([bytearray(whole)], config, FINGERPRINT), record)


def test_one_aligned_writable_buffer_is_used_without_a_copy() -> None:
    config = tiny_config()
    whole = full_snapshot(config)
    buffer = aligned_buffer(len(whole))
    buffer[:] = whole
    record = decode_snapshot([buffer], config, FINGERPRINT)
    tensor = record.state.tensors.named_tensors()["layers.1.keys"]
    before = tensor.clone()
    buffer[:] = bytes(len(whole))
    assert not equal_bits(tensor, before)
    assert torch.count_nonzero(tensor) == 0


def test_tensors_are_aligned_to_64_bytes_wherever_they_come_from() -> None:
    config = tiny_config()
    whole = full_snapshot(config)
    shifted = memoryview(bytearray(b"x" + whole))[1:]
    for parts in ([shifted], [whole], [whole[:5000], whole[5000:]]):
        record = decode_snapshot(parts, config, FINGERPRINT)
        assert all(tensor.data_ptr() % 64 == 0 for tensor in record.state.tensors.named_tensors().values())


def test_the_size_depends_on_the_model_and_not_on_how_much_was_read() -> None:
    config = tiny_config()
    sizes = {
        encode_snapshot(full_record(config, position), FINGERPRINT, PART_NUM_BYTES).num_bytes
        for position in (0, 1_000, 1_000_000, 10**15)
    }
    assert len(sizes) == 1
    longest = full_record(config)
    longest = SessionRecord(longest.state, (b"l" * 16,) * MAX_LEDGER, b"s" * 16)
    num_bytes = encode_snapshot(longest, FINGERPRINT, PART_NUM_BYTES).num_bytes
    assert num_bytes <= session_num_bytes(config) + 64 * len(longest.state.tensors.named_tensors()) + 32_768


@pytest.mark.parametrize(
    "record",
    [
        SessionRecord(full_record(tiny_config()).state, ledger=(b"l" * 16,) * (MAX_LEDGER + 1)),
        SessionRecord(full_record(tiny_config()).state, ledger=(b"",)),
        SessionRecord(full_record(tiny_config()).state, metadata={str(index): "" for index in range(65)}),
        SessionRecord(full_record(tiny_config()).state, metadata={"name": "x" * 4097}),
        SessionRecord(full_record(tiny_config()).state, open_ingest=OpenIngest("d", -1, b"d")),
        SessionRecord(full_record(tiny_config()).state, created=float("nan")),
    ],
)
def test_what_could_not_be_read_back_is_never_written(record: SessionRecord) -> None:
    with pytest.raises(InvalidState):
        encode_snapshot(record, FINGERPRINT, PART_NUM_BYTES)


def test_another_models_snapshot_is_refused_with_both_fingerprints() -> None:
    config = tiny_config()
    with pytest.raises(StateModelMismatch, match=rf"{FINGERPRINT}.*feedbeef") as caught:
        decode_snapshot([full_snapshot(config)], config, "feedbeef")
    assert (caught.value.snapshot_fingerprint, caught.value.model_fingerprint) == (FINGERPRINT, "feedbeef")


def test_another_configurations_snapshot_is_refused_by_its_layout() -> None:
    with pytest.raises(InvalidState, match="laid out"):
        decode_snapshot([full_snapshot(tiny_config("float64"))], tiny_config(), FINGERPRINT)


def test_another_snapshot_than_the_head_names_is_refused() -> None:
    config = tiny_config()
    one = encode_snapshot(full_record(config, seed=1), FINGERPRINT, PART_NUM_BYTES)
    two = encode_snapshot(full_record(config, seed=2), FINGERPRINT, PART_NUM_BYTES)
    decode_snapshot(one.parts, config, FINGERPRINT, one.digest)
    with pytest.raises(StateCorrupt, match="another one"):
        decode_snapshot(one.parts, config, FINGERPRINT, two.digest)


def test_parts_of_two_snapshots_never_pass_as_one() -> None:
    config = tiny_config()
    one = encode_snapshot(full_record(config, seed=1), FINGERPRINT, PART_NUM_BYTES)
    two = encode_snapshot(full_record(config, seed=2), FINGERPRINT, PART_NUM_BYTES)
    assert len(one.parts) == len(two.parts) > 2
    for index in range(len(one.parts)):
        mixed = [*one.parts]
        mixed[index] = two.parts[index]
        with pytest.raises(StateCorrupt):
            decode_snapshot(mixed, config, FINGERPRINT)


def test_a_flipped_bit_is_found_wherever_it_is() -> None:
    config = tiny_config()
    whole = full_snapshot(config)
    rng = random.Random(0)
    # Every bit of the frame, many of the header, and many anywhere, the padding included.
    offsets = [*range(8), *(rng.randrange(8, header_end(whole)) for _ in range(600))]
    offsets += [header_end(whole), -1, *(rng.randrange(len(whole)) for _ in range(1000))]
    for offset in offsets:
        for bit in range(8) if offset in range(8) else [rng.randrange(8)]:
            flipped = bytearray(whole)
            flipped[offset] ^= 1 << bit
            with pytest.raises(StateCorrupt):
                decode_snapshot([flipped], config, FINGERPRINT)


def test_a_cut_snapshot_is_found_wherever_it_ends() -> None:
    config = tiny_config()
    whole = full_snapshot(config)
    rng = random.Random(0)
    ends = {*range(9), header_end(whole), header_end(whole) - 1, 4096, len(whole) - 1}
    ends |= {rng.randrange(len(whole)) for _ in range(300)}
    for end in ends:
        with pytest.raises(StateCorrupt):
            decode_snapshot([whole[:end]], config, FINGERPRINT)
    with pytest.raises(StateCorrupt):
        decode_snapshot([], config, FINGERPRINT)


@pytest.mark.parametrize("tail", [b"\0", b"x" * 64, b"x" * 4096, b"x" * 10_000])
def test_bytes_behind_the_end_are_refused(tail: bytes) -> None:
    config = tiny_config()
    with pytest.raises(StateCorrupt):
        decode_snapshot([full_snapshot(config), tail], config, FINGERPRINT)


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_never_a_snapshot(seed: int) -> None:
    noise = random.Random(seed).randbytes(20_000)
    for raw in (noise, b"ATLS" + noise, b"\x80\x04\x95" + noise, b"ATLS\x40\0\0\0" + noise, b"ATLS\xff\xff\xff\xff"):
        with pytest.raises(StateCorrupt):
            decode_snapshot([raw], tiny_config(), FINGERPRINT)

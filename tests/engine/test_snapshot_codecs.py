"""Codecs: what is rounded and how far, that coding again changes nothing, and that every server reads every codec."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atlas_model.config import AtlasConfig
from atlas_model.state import State, state_spec
from bench.report import SHIPPED_MODEL
from engine.errors import InvalidState, SnapshotError
from engine.sequence import SequenceState
from engine.snapshots.codecs import Codec, code, coded, decode, stored_spec
from engine.snapshots.snapshot import (
    SessionRecord,
    coded_record,
    decode_snapshot,
    encode_snapshot,
    max_snapshot_num_bytes,
)
from tests.engine.snapshot_cases import (
    FINGERPRINT,
    StateDtype,
    equal_bits,
    finite_record,
    full_record,
    tiny_config,
    with_header,
    with_tensor_bytes,
)
from tests.engine.test_snapshot import DTYPES, assert_same_record

ROUNDING = [Codec.BF16, Codec.INT8]
NAME = "layers.0.memory.w"
LARGEST = 2.0**126


def rows(raw: bytes, dtype: torch.dtype) -> Tensor:
    """[1, 3, 8]: any bit patterns, zeros in place of what no state has."""
    bits = torch.frombuffer(bytearray(raw), dtype=dtype).reshape(1, 3, 8)
    return torch.where(bits.abs() <= LARGEST, bits, 0.0)


def scaled_rows(numbers: list[int], exponents: list[int]) -> Tensor:
    """[1, 3, 8] float32: rows whose numbers are of one size each, down to the subnormal."""
    units = torch.tensor(numbers, dtype=torch.float64).reshape(1, 3, 8)
    return (units * 2.0 ** torch.tensor(exponents, dtype=torch.float64)[:, None]).to(torch.float32)


TENSORS = st.one_of(
    st.binary(min_size=96, max_size=96).map(lambda raw: rows(raw, torch.float32)),
    st.binary(min_size=192, max_size=192).map(lambda raw: rows(raw, torch.float64)),
    st.builds(
        scaled_rows,
        st.lists(st.integers(-(2**24), 2**24), min_size=24, max_size=24),
        st.lists(st.integers(-160, 102), min_size=3, max_size=3),
    ),
)


@pytest.mark.parametrize("codec", ROUNDING)
@given(tensor=TENSORS)
def test_what_has_been_coded_once_is_coded_to_the_same_bits_for_ever(codec: Codec, tensor: Tensor) -> None:
    once = coded({NAME: tensor}, codec)
    assert bool(once[NAME].isfinite().all())
    assert equal_bits(coded(once, codec)[NAME], once[NAME])
    first, second = code({NAME: tensor}, codec), code(once, codec)
    assert all(equal_bits(first[name], second[name]) for name in first)


@given(raw=st.binary(min_size=96, max_size=96))
def test_bf16_is_the_nearest_bfloat16_ties_to_even(raw: bytes) -> None:
    tensor = rows(raw, torch.float32)
    bits = tensor.view(torch.int32).to(torch.int64)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    assert torch.equal(coded({NAME: tensor}, Codec.BF16)[NAME].view(torch.int32).to(torch.int64), nearest)


@given(tensor=TENSORS)
def test_int8_is_off_by_no_more_than_half_a_127th_of_the_rows_largest_number(tensor: Tensor) -> None:
    error = (coded({NAME: tensor}, Codec.INT8)[NAME].double() - tensor.double()).abs()
    # A 253rd and not a 254th: the scale has eight bits itself.
    allowed = (tensor.double().abs().amax(-1, keepdim=True) / 253).clamp(min=2.0**-127)
    assert bool((error <= allowed).all())


@pytest.mark.parametrize("codec", ROUNDING)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2.0**127])
def test_a_number_that_would_be_lost_is_refused(codec: Codec, bad: float) -> None:
    tensor = torch.ones(1, 2, 3)
    tensor[0, 1, 1] = bad
    with pytest.raises(InvalidState, match=NAME):
        code({NAME: tensor}, codec)
    with pytest.raises(InvalidState):
        encode_snapshot(full_record(tiny_config()), FINGERPRINT, 4096, codec)


def test_without_a_codec_the_very_tensors_are_stored_and_the_very_record_goes_on() -> None:
    config = tiny_config()
    record = full_record(config)
    tensors = record.state.tensors.named_tensors()
    assert all(code(tensors, Codec.NONE)[name] is tensor for name, tensor in tensors.items())
    assert all(decode(tensors, state_spec(config), Codec.NONE)[name] is tensor for name, tensor in tensors.items())
    assert coded_record(record, config, Codec.NONE) is record


@pytest.mark.parametrize("codec", ROUNDING)
def test_positions_and_gates_are_kept_bit_for_bit_and_all_else_of_a_float32_model_is_rounded(codec: Codec) -> None:
    config = tiny_config()
    record = finite_record(config)
    before = record.state.tensors.named_tensors()
    after = coded_record(record, config, codec).state.tensors.named_tensors()
    kept = {name for name, tensor in before.items() if equal_bits(tensor, after[name])}
    assert kept == {"position", "layers.0.gates", "layers.1.gates"}


@pytest.mark.parametrize("codec", ROUNDING)
def test_the_bfloat16_buffers_of_a_model_are_stored_as_they_are(codec: Codec) -> None:
    config = tiny_config("bfloat16")
    stored = stored_spec(state_spec(config), codec)
    assert all(stored[name] == each for name, each in state_spec(config).items() if each.dtype == torch.bfloat16)


@pytest.mark.parametrize("state_dtype", DTYPES)
@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("part_num_bytes", [1024, 2**20])
def test_a_snapshot_of_any_codec_comes_back_as_the_coded_record(
    state_dtype: StateDtype, codec: Codec, part_num_bytes: int
) -> None:
    config = tiny_config(state_dtype)
    expected = coded_record(finite_record(config), config, codec)
    snapshot = encode_snapshot(finite_record(config), FINGERPRINT, part_num_bytes, codec)
    record = decode_snapshot(snapshot.parts, config, FINGERPRINT, snapshot.digest)
    assert_same_record(record, expected)
    assert encode_snapshot(record, FINGERPRINT, part_num_bytes, codec).digest == snapshot.digest
    assert snapshot.num_bytes <= max_snapshot_num_bytes(config)


def test_the_shipped_models_state_takes_half_of_the_bytes_and_little_more_than_a_quarter() -> None:
    config = json.loads((SHIPPED_MODEL / "config.json").read_text(encoding="utf-8"))
    spec = state_spec(AtlasConfig.from_dict(config["model"]))
    num_bytes = {
        codec: sum(math.prod(each.shape) * each.dtype.itemsize for each in stored_spec(spec, codec).values())
        for codec in Codec
    }
    assert num_bytes[Codec.BF16] / num_bytes[Codec.NONE] < 0.51
    assert num_bytes[Codec.INT8] / num_bytes[Codec.NONE] < 0.27


@pytest.mark.parametrize("codec", ROUNDING)
def test_decoded_tensors_are_aligned_and_do_not_hold_the_snapshots_buffer(codec: Codec) -> None:
    config = tiny_config()
    snapshot = encode_snapshot(finite_record(config), FINGERPRINT, 2**20, codec)
    for tensor in decode_snapshot(snapshot.parts, config, FINGERPRINT).state.tensors.named_tensors().values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert tensor.data_ptr() % 64 == 0


def int8_snapshot() -> bytes:
    """Of one part."""
    return b"".join(encode_snapshot(finite_record(tiny_config()), FINGERPRINT, 2**20, Codec.INT8).parts)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf"), 2.0**121, -1.0, 0.0, 2.0**-127])
def test_scales_that_were_never_written_are_refused_though_the_checksums_hold(scale: float) -> None:
    raw = torch.tensor([scale], dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    good = torch.tensor([1.0], dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    for name in ("layers.0.memory.w_in.scales", "layers.1.convolution.scales"):
        decode_snapshot([with_tensor_bytes(int8_snapshot(), name, good)], tiny_config(), FINGERPRINT)
        with pytest.raises(InvalidState, match=name.removesuffix(".scales")):
            decode_snapshot([with_tensor_bytes(int8_snapshot(), name, raw)], tiny_config(), FINGERPRINT)


def packed_table(snapshot: bytes) -> bytes:
    tables: list[bytes] = []
    with_header(snapshot, lambda fields: tables.append(fields["tensors"]))
    return tables[0]


def with_table(snapshot: bytes, table: bytes) -> bytes:
    return with_header(snapshot, lambda fields: fields.update(tensors=table))


@pytest.mark.parametrize("codec", Codec)
def test_the_table_of_another_codec_or_of_none_that_there_is_is_refused(codec: Codec) -> None:
    config = tiny_config()
    snapshots = {
        each: b"".join(encode_snapshot(finite_record(config), FINGERPRINT, 2**20, each).parts) for each in Codec
    }
    for other in set(Codec) - {codec}:
        with pytest.raises(SnapshotError):
            decode_snapshot([with_table(snapshots[codec], packed_table(snapshots[other]))], config, FINGERPRINT)
    table = packed_table(snapshots[codec])
    for lie in (table.replace(b"int64", b"uint8"), table.replace(b"gates", b"doors"), table[:-1] + b"\0"):
        assert lie != table
        with pytest.raises(InvalidState, match="laid out"):
            decode_snapshot([with_table(snapshots[codec], lie)], config, FINGERPRINT)


def test_any_bytes_under_good_scales_are_a_state_of_finite_numbers() -> None:
    """-128 is never written, and does no harm."""
    snapshot = with_tensor_bytes(int8_snapshot(), "layers.0.memory.w_in", b"\x80" * 8)
    largest = torch.tensor([2.0**120], dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    snapshot = with_tensor_bytes(snapshot, "layers.0.memory.w_in.scales", largest)
    record = decode_snapshot([snapshot], tiny_config(), FINGERPRINT)
    assert float(record.state.tensors.named_tensors()["layers.0.memory.w_in"].min()) == -(2.0**127)


@pytest.mark.parametrize("codec", ROUNDING)
def test_coding_leaves_the_state_that_it_is_given_alone(codec: Codec) -> None:
    config = tiny_config()
    record = finite_record(config)
    tensors = State.from_named_tensors(
        config, {name: tensor.clone() for name, tensor in record.state.tensors.named_tensors().items()}
    )
    untouched = SessionRecord(SequenceState(tensors, record.state.tokens_digest))
    new = coded_record(untouched, config, codec)
    assert new.state.tensors is not tensors
    for name, tensor in record.state.tensors.named_tensors().items():
        assert equal_bits(tensor, tensors.named_tensors()[name])

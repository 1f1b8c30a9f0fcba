"""Snapshots of every schema version and codec that were ever written, kept in tests/golden: they must load for ever."""

import json
from pathlib import Path

import pytest

from atlas_model.config import AtlasConfig
from engine.snapshots.codecs import Codec
from engine.snapshots.header import SCHEMA_VERSION
from engine.snapshots.memory_samples import NO_SAMPLES
from engine.snapshots.snapshot import OpenIngest, decode_snapshot, encode_snapshot
from tests.engine.snapshot_cases import PART_NUM_BYTES, in_order, samples_digest, tensor_digests
from tests.golden.write import GOLDEN, golden_path

PATHS = sorted(GOLDEN.glob("snapshot-v*.atls"))
# Schema 1 is from before there were codecs.
FIRST_SCHEMA_WITH_RING = 3
WRITTEN = [(1, Codec.NONE), *((schema, codec) for schema in range(2, SCHEMA_VERSION + 1) for codec in Codec)]


def test_there_is_a_golden_snapshot_of_every_schema_version_and_codec() -> None:
    assert set(PATHS) == {golden_path(schema, codec) for schema, codec in WRITTEN}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_golden_snapshot_still_loads_to_the_state_that_was_saved(path: Path) -> None:
    expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    config = AtlasConfig.from_dict(expected["config"])
    record = decode_snapshot([path.read_bytes()], config, expected["fingerprint"])
    assert record.state.position == expected["position"]
    tensors = record.state.tensors.named_tensors()
    if int(path.stem.split("-")[1].removeprefix("v")) < FIRST_SCHEMA_WITH_RING:
        for name in [name for name in tensors if ".attention." in name]:
            tensors[name] = in_order(tensors[name][0], record.state.position)[None]
    assert tensor_digests(tensors) == expected["tensors"]
    assert record.state.tokens_digest == bytes(range(16))
    assert record.state.pending_token_ids == (7, 299)
    assert record.ledger == tuple(bytes([index]) * 16 for index in range(5))
    assert record.system_digest == b"s" * 16
    assert record.open_ingest == OpenIngest("document-1", 10**12, b"d" * 16)
    assert record.metadata == {"título": "señal \U0001f9ed"}
    assert record.created == 1234.5678
    # Schema 1 is from before there were samples.
    assert samples_digest(record.state.memory_samples) == expected.get("memory_samples", samples_digest(NO_SAMPLES))


@pytest.mark.parametrize("codec", Codec)
def test_the_newest_golden_snapshots_are_what_we_would_write_today(codec: Codec) -> None:
    path = golden_path(SCHEMA_VERSION, codec)
    expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    config = AtlasConfig.from_dict(expected["config"])
    record = decode_snapshot([path.read_bytes()], config, expected["fingerprint"])
    assert b"".join(encode_snapshot(record, expected["fingerprint"], PART_NUM_BYTES, codec).parts) == path.read_bytes()

"""Snapshots of every schema version that was ever written, kept in tests/golden: they must load for ever."""

import json
from pathlib import Path

import pytest

from atlas_model.config import AtlasConfig
from engine.memory_samples import NO_SAMPLES
from engine.snapshot import OpenIngest, decode_snapshot, encode_snapshot
from engine.snapshot_header import SCHEMA_VERSION
from tests.engine.snapshot_cases import PART_NUM_BYTES, samples_digest, tensor_digests
from tests.golden.write import GOLDEN

PATHS = sorted(GOLDEN.glob("snapshot-v*.atls"))


def test_there_is_a_golden_snapshot_of_every_schema_version() -> None:
    assert [path.stem for path in PATHS] == [f"snapshot-v{version}" for version in range(1, SCHEMA_VERSION + 1)]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_golden_snapshot_still_loads_to_the_state_that_was_saved(path: Path) -> None:
    expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    config = AtlasConfig.from_dict(expected["config"])
    record = decode_snapshot([path.read_bytes()], config, expected["fingerprint"])
    assert record.state.position == expected["position"]
    assert tensor_digests(record.state.tensors) == expected["tensors"]
    assert record.state.tokens_digest == bytes(range(16))
    assert record.state.pending_token_ids == (7, 299)
    assert record.ledger == tuple(bytes([index]) * 16 for index in range(5))
    assert record.system_digest == b"s" * 16
    assert record.open_ingest == OpenIngest("document-1", 10**12, b"d" * 16)
    assert record.metadata == {"título": "señal \U0001f9ed"}
    assert record.created == 1234.5678
    # Schema 1 is from before there were samples.
    assert samples_digest(record.state.memory_samples) == expected.get("memory_samples", samples_digest(NO_SAMPLES))


def test_the_newest_golden_snapshot_is_what_we_would_write_today() -> None:
    path = PATHS[-1]
    expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    config = AtlasConfig.from_dict(expected["config"])
    record = decode_snapshot([path.read_bytes()], config, expected["fingerprint"])
    assert b"".join(encode_snapshot(record, expected["fingerprint"], PART_NUM_BYTES).parts) == path.read_bytes()

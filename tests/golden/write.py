"""Writes the golden snapshots of the schema version that this code writes, one for each codec.

    python -m tests.golden.write

Run once when the schema version has changed, or there is another codec. Files that exist are never written again: they
must load for ever, so a test that fails on them is right.
"""

import json
from pathlib import Path

from engine.snapshots.codecs import Codec
from engine.snapshots.header import SCHEMA_VERSION
from engine.snapshots.snapshot import coded_record, encode_snapshot
from tests.engine.snapshot_cases import (
    FINGERPRINT,
    PART_NUM_BYTES,
    finite_record,
    full_record,
    samples_digest,
    tensor_digests,
    tiny_config,
)

GOLDEN = Path(__file__).parent


def golden_path(schema: int, codec: Codec) -> Path:
    return GOLDEN / f"snapshot-v{schema}{'' if codec is Codec.NONE else f'-{codec}'}.atls"


def main() -> None:
    missing = [codec for codec in Codec if not golden_path(SCHEMA_VERSION, codec).exists()]
    if not missing:
        raise SystemExit("all golden snapshots of this schema version exist and are never written again")
    for codec in missing:
        write(codec)


def write(codec: Codec) -> None:
    config = tiny_config("bfloat16" if codec is Codec.NONE else "float32")
    record = full_record(config) if codec is Codec.NONE else coded_record(finite_record(config), config, codec)
    target = golden_path(SCHEMA_VERSION, codec)
    target.write_bytes(b"".join(encode_snapshot(record, FINGERPRINT, PART_NUM_BYTES, codec).parts))
    expected = {
        "config": config.to_dict(),
        "fingerprint": FINGERPRINT,
        "position": record.state.position,
        "memory_samples": samples_digest(record.state.memory_samples),
        "tensors": tensor_digests(record.state.tensors.named_tensors()),
    }
    target.with_suffix(".json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

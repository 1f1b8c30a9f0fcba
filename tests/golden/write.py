"""Writes the golden snapshot of the schema version that this code writes.

    python -m tests.golden.write

Run once when the schema version has changed. The files of older versions are never written again: they must load for
ever, so a test that fails on them is right.
"""

import json
from pathlib import Path

from engine.snapshot_header import SCHEMA_VERSION
from tests.engine.snapshot_cases import (
    FINGERPRINT,
    full_record,
    full_snapshot,
    samples_digest,
    tensor_digests,
    tiny_config,
)

GOLDEN = Path(__file__).parent


def main() -> None:
    config = tiny_config("bfloat16")
    record = full_record(config)
    target = GOLDEN / f"snapshot-v{SCHEMA_VERSION}.atls"
    if target.exists():
        raise SystemExit(f"{target.name} exists and is never written again")
    target.write_bytes(full_snapshot(config))
    expected = {
        "config": config.to_dict(),
        "fingerprint": FINGERPRINT,
        "position": record.state.position,
        "memory_samples": samples_digest(record.state.memory_samples),
        "tensors": tensor_digests(record.state.tensors),
    }
    target.with_suffix(".json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What the store tests share: generations whose bytes tell which version they are, and a check that nothing is torn."""

import re
from dataclasses import replace
from pathlib import Path

from engine.stores.base import Head, NewGeneration, SessionKey, Store, new_generation_id

KEY = SessionKey("tenant", "session:1")
NUM_KEPT = 2
NUM_PARTS = 3
PART_NUM_BYTES = 5_003


def part_of(number: int, index: int) -> bytes:
    return f"{number}.{index};".encode() * (PART_NUM_BYTES // 4)


def generation_of(number: int, ttl_seconds: int | None = None) -> NewGeneration:
    """A generation whose every byte names `number`."""
    return NewGeneration(
        generation=new_generation_id(),
        parts=[memoryview(part_of(number, index)) for index in range(NUM_PARTS)],
        digest=f"{number:032x}",
        position=number,
        created=1.0,
        updated=2.0,
        metadata={"number": str(number)},
        extra=f"extra {number}".encode(),
        ttl_seconds=ttl_seconds,
    )


def log_of(number: int) -> bytes:
    """What generation `number` appends to the token log."""
    return f"log {number};".encode() * number


def logged_generation_of(number: int, ttl_seconds: int | None = None) -> NewGeneration:
    return replace(generation_of(number, ttl_seconds), log=log_of(number))


def logged_numbers(store: Store, key: SessionKey = KEY) -> list[int]:
    """Whose appendices the token log is, oldest first; fails when it is not whole ones of `logged_generation_of`."""
    head = store.read_head(key)
    assert head is not None
    assert head.log_id is not None
    assert head.log_num_bytes is not None
    log = bytes(store.load_log(key, head.log_id, head.log_num_bytes))
    numbers = [int(number) for number in dict.fromkeys(re.findall(rb"log (\d+);", log))]
    assert log == b"".join(log_of(number) for number in numbers)
    return numbers


def whole_number(store: Store, key: SessionKey = KEY, version: int | None = None) -> int:
    """Which generation a load returns; fails when it is not one whole generation of `generation_of`."""
    head, parts = store.load(key, version)
    generation = head.committed if version is None else head.find(version)
    assert generation is not None
    number = generation.position
    assert b"".join(parts) == b"".join(part_of(number, index) for index in range(NUM_PARTS))
    assert generation.digest == f"{number:032x}"
    return number


def commit_number(store: Store, number: int, base: Head | None, key: SessionKey = KEY) -> Head:
    return store.commit(key, base, generation_of(number))


def blob_names(directory: Path) -> set[str]:
    """The files of a local store's generations, and what is beside them."""
    return {path.name for path in (directory / "blobs").iterdir()}

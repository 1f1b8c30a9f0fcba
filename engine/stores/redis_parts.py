"""Parts on their way to Redis and back: a few megabytes in flight, whatever the snapshot's size.

Small values share a round trip. A large one has one to itself, so that other clients wait for no more than that.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from engine.errors import StateCorrupt, StoreFull, StoreUnavailable
from engine.failpoints import failpoint
from engine.snapshots.buffers import aligned_buffer
from engine.stores.head import Buffer, buffer_num_bytes
from engine.stores.redis_client import Command, RedisClient
from engine.stores.redis_errors import translated

BATCH_NUM_BYTES = 4 * 2**20

Value = tuple[bytes, Buffer]


def stage(client: RedisClient, values: Iterable[Value], seconds: int, entries: Sequence[Command]) -> list[bytes]:
    """Write values under their names, to live `seconds`, the small commands `entries` going ahead of the first ones.

    Returns the names that were not there before. The others were written by an earlier try of the same commit, which
    may have been applied after all: they are given no time-to-live here, and must not be unlinked.
    After StoreFull nothing that this call wrote is left.
    """
    staged: list[bytes] = []
    try:
        for batch, num_bytes in _batches(values):
            commands: list[Command] = [("SET", name, memoryview(value), "EX", seconds, "NX") for name, value in batch]
            replies = client.bulk_many([*entries, *commands], num_bytes)
            written = replies[len(entries) :]
            staged += [name for (name, _), reply in zip(batch, written, strict=True) if reply is True]
            with translated():
                for reply in replies:
                    if isinstance(reply, Exception):
                        raise reply
            failpoint("commit.part")
            entries = ()
    except StoreFull:
        unlink(client, staged)
        raise
    return staged


def unlink(client: RedisClient, names: Sequence[bytes]) -> None:
    """What cannot be reached now goes by its time-to-live."""
    with suppress(StoreUnavailable):
        if names:
            client.control("UNLINK", *names)


def fetch(client: RedisClient, names: Sequence[bytes], num_bytes: int) -> memoryview | None:
    """All parts in one writable, aligned buffer; None when one of them is gone.

    Raises `StateCorrupt` when a part has not the size that it has among equal parts, the last of them being shorter.
    """
    whole = memoryview(b"")
    part_num_bytes = 0
    for index, name in enumerate(names):
        part = client.bulk("GET", name)
        if part is None:
            return None
        if index == 0:
            part_num_bytes = len(part)
            if not part_num_bytes * (len(names) - 1) < num_bytes <= part_num_bytes * len(names):
                raise StateCorrupt("a part of a stored snapshot was cut or grew")
            whole = aligned_buffer(num_bytes)
        start = index * part_num_bytes
        if len(part) != min(part_num_bytes, num_bytes - start):
            raise StateCorrupt("a part of a stored snapshot was cut or grew")
        whole[start : start + len(part)] = part
    return whole


def _batches(values: Iterable[Value]) -> Iterator[tuple[list[Value], int]]:
    """Values that share a round trip, and their size; one empty batch when there are none."""
    batch: list[Value] = []
    num_bytes, is_first = 0, True
    for name, value in values:
        batch.append((name, value))
        num_bytes += buffer_num_bytes(value)
        if num_bytes >= BATCH_NUM_BYTES:
            yield batch, num_bytes
            batch, num_bytes, is_first = [], 0, False
    if batch or is_first:
        yield batch, num_bytes

"""What a start of the local store deletes: what no session names any more, and copies put aside long ago."""

import time

from engine.stores.blobs import BlobDirectory
from engine.stores.index import Index
from engine.stores.logs import LogDirectory

QUARANTINE_SECONDS = 30 * 24 * 3600


def sweep_files(index: Index, blobs: BlobDirectory, logs: LogDirectory) -> None:
    """Delete what no head names: temporary files, blobs never flipped to, generations that were left, token logs.

    Nothing is deleted while a head cannot be read.
    """
    heads = [head for _, head in index.all_heads()]
    if None in heads:
        return
    named = {generation.generation for head in heads if head for generation in head.generations}
    for name in blobs.names():
        if name not in named:
            blobs.remove(name)
    for name in {*logs.names()} - {head.log_id for head in heads if head}:
        logs.remove(name)


def sweep_quarantine(index: Index, quarantined: BlobDirectory, now: float | None = None) -> None:
    """Delete copies that nothing has touched for QUARANTINE_SECONDS, `now` being seconds since the epoch."""
    oldest = (time.time() if now is None else now) - QUARANTINE_SECONDS
    for name in quarantined.names():
        if quarantined.changed(name) < oldest:
            quarantined.remove(name)
    names = set(quarantined.names())
    for generation, _ in index.quarantined():
        if generation not in names:
            index.remove_quarantined(generation)

"""A token log in Redis: one string, which Redis bounds to 512 MiB.

A log that begins, perhaps as a copy of another, is staged like a part; what is appended to one travels with the flip.
"""

from engine.errors import LogLost, StoreFull
from engine.stores.head import Buffer
from engine.stores.redis_client import RedisClient

MAX_LOG_NUM_BYTES = 512 * 2**20
_PIECE_NUM_BYTES = 4 * 2**20


def check_log_fits(num_bytes: int) -> None:
    """Raises `StoreFull`."""
    if num_bytes > MAX_LOG_NUM_BYTES:
        raise StoreFull(
            "the token log of this session has reached the 512 MiB that Redis can hold:"
            " export the session and import it to go on without one"
        )


def first_piece(log: Buffer) -> memoryview:
    """What of a log that begins is staged with the parts."""
    return memoryview(log).cast("B")[:_PIECE_NUM_BYTES]


def stage_rest(client: RedisClient, name: bytes, log: Buffer) -> None:
    """The rest of it, behind the first piece."""
    view = memoryview(log).cast("B")
    for start in range(_PIECE_NUM_BYTES, view.nbytes, _PIECE_NUM_BYTES):
        client.bulk("SETRANGE", name, start, view[start : start + _PIECE_NUM_BYTES])


def read_log(client: RedisClient, name: bytes, num_bytes: int) -> bytes:
    """The first `num_bytes`. Raises `LogLost`."""
    log = bytearray()
    while len(log) < num_bytes:
        last = min(len(log) + _PIECE_NUM_BYTES, num_bytes) - 1
        piece = client.bulk("GETRANGE", name, len(log), last)
        if not piece:
            raise LogLost("the session's token log is gone")
        log += piece
    return bytes(log)

"""The checksums of everything that is stored: xxh3, fast enough to vanish beside the write. Not a cryptographic hash:
it finds flipped, cut and mixed bytes, and proves nothing about who wrote them."""

import xxhash

PART_CHECKSUM_NUM_BYTES = 8
DIGEST_NUM_BYTES = 16


def part_checksum(*pieces: bytes | bytearray | memoryview) -> bytes:
    """xxh3-64 of the pieces one behind the other, 8 bytes."""
    state = xxhash.xxh3_64()
    for piece in pieces:
        state.update(piece)
    checksum: bytes = state.digest()
    return checksum


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """xxh3-128, 16 bytes."""
    result: bytes = xxhash.xxh3_128_digest(data)
    return result

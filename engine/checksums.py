"""The checksums of everything that is stored: xxh3, fast enough to vanish beside the write. Not a cryptographic hash:
it finds flipped, cut and mixed bytes, and proves nothing about who wrote them."""

import xxhash

PART_CHECKSUM_NUM_BYTES = 8
DIGEST_NUM_BYTES = 16


def part_checksum(data: bytes | bytearray | memoryview) -> bytes:
    """xxh3-64, 8 bytes."""
    checksum: bytes = xxhash.xxh3_64_digest(data)
    return checksum


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """xxh3-128, 16 bytes."""
    result: bytes = xxhash.xxh3_128_digest(data)
    return result

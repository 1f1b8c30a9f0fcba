"""Where a snapshot's bytes lie on their way in and out."""

import numpy as np

ALIGNMENT = 64


def aligned_buffer(num_bytes: int) -> memoryview:
    """Writable bytes from a 64-byte border on. What they hold is not defined.

    NOTE: from the allocator and not from mmap: it hands out the same warm pages again, and a page fault costs more
    than copying the page.
    """
    raw = np.empty(num_bytes + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + num_bytes].data

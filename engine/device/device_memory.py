"""A device that has no memory left: how that is told by torch, and what can be given back.

The slots are allocated once, at start, so that dropping a resident state gives back nothing: what a step needs beside
them is its own tensors, and only a smaller step needs less.
"""

import torch

# Of the CPU's allocator, whose failure is a plain RuntimeError.
_CPU_MESSAGE = "DefaultCPUAllocator: "


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _CPU_MESSAGE in str(error)


def free_cached_memory(device: torch.device) -> None:
    """Gives back what torch's allocator keeps, which may lie in pieces that are too small."""
    if device.type == "cuda":
        torch.cuda.empty_cache()

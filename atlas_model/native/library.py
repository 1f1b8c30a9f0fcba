"""The compiled kernels, loaded: their functions for one dtype, as decoder.cpp exports them."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from atlas_model.native.errors import NativeUnavailableError

_NAMES = {torch.float32: "float", torch.float64: "double"}
_address = ctypes.c_void_p

OUT_OF_MEMORY, OUT_OF_VOCABULARY = 1, 2
"""What a step returns when it has done nothing; else it is 0."""


class NativeLibrary:
    """make: (shape, weights) -> a decoder, None without memory. step: (decoder, num_rows, token ids, positions, places,
    logits, num_threads) -> 0 or a reason. multiply: (decoder, num_rows, logits, num_threads) -> the same.
    free: (decoder)."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        """Raises NativeUnavailableError when the system refuses the file."""
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise NativeUnavailableError(f"the library cannot be loaded: {error}") from error
        name = _NAMES[dtype]
        self.make = getattr(library, f"atlas_make_{name}")
        self.make.argtypes, self.make.restype = [_address, _address], _address
        self.step = getattr(library, f"atlas_step_{name}")
        self.step.argtypes = [_address, ctypes.c_int64, *[_address] * 4, ctypes.c_int]
        self.step.restype = ctypes.c_int
        self.multiply = getattr(library, f"atlas_multiply_{name}")
        self.multiply.argtypes = [_address, ctypes.c_int64, _address, ctypes.c_int]
        self.multiply.restype = ctypes.c_int
        self.free = getattr(library, f"atlas_free_{name}")
        self.free.argtypes, self.free.restype = [_address], None

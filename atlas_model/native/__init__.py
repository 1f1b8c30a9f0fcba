"""The recurrent form's kernels in C++, for the models and machines that they can serve; AtlasModel.step is the rest."""

from __future__ import annotations

from pathlib import Path

from atlas_model.model import AtlasModel
from atlas_model.native.compiler import build_library
from atlas_model.native.coverage import check_coverage
from atlas_model.native.decoder import NativeDecoder
from atlas_model.native.errors import NativeUnavailableError, NotCoveredError
from atlas_model.native.library import NativeLibrary

__all__ = ["NativeDecoder", "NativeUnavailableError", "NotCoveredError", "native_decoder"]


def native_decoder(model: AtlasModel, cache: Path | None = None) -> NativeDecoder:
    """The model's decode step, whose kernels are compiled now if they have not been before: half a minute at most.

    cache: the folder where they are kept, the user's unless told. Raises NotCoveredError and NativeUnavailableError.
    """
    check_coverage(model)
    return NativeDecoder(model, NativeLibrary(build_library(cache), model.embedding.weight.dtype))

"""What computes a decode step: the native kernels, or torch's operators, on CUDA captured in graphs. Chosen once, when
an engine is made."""

import logging
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from atlas_model.model import AtlasModel
from atlas_model.native import NativeDecoder, NativeUnavailableError, NotCoveredError, native_decoder
from atlas_model.state import State
from engine.config import EngineConfig
from engine.device.decode_graphs import DecodeGraphs, capture_cuda_graph
from engine.device.state_pool import StatePool

_logger = logging.getLogger(__name__)


class DecodeStep(Protocol):
    """first_row: where in the pool the rows of a step must begin; None is anywhere."""

    first_row: int | None

    def feed(self, token_ids: Tensor, state: State, positions: Sequence[int]) -> Tensor:
        """One token a row, int64 [B], into neighbouring rows of the pool, which go on in place -> logits [B, V].

        positions: those of the state, as the host knows them. When it raises no row has changed.
        """
        ...


class TorchStep:
    """graphs: what computes in place of the model, as far as it can."""

    def __init__(self, model: AtlasModel, graphs: DecodeGraphs | None = None) -> None:
        self._model = model
        self._graphs = graphs
        self.first_row: int | None = None if graphs is None else 0

    def feed(self, token_ids: Tensor, state: State, positions: Sequence[int]) -> Tensor:
        results = None if self._graphs is None else self._graphs.step(token_ids)
        logits, delta = self._model.step_delta(token_ids, state) if results is None else results
        self._model.commit(delta, state, positions).write(state.named_tensors())
        return logits


class NativeStep:
    def __init__(self, decoder: NativeDecoder) -> None:
        self.decoder = decoder
        self.first_row: int | None = None

    def feed(self, token_ids: Tensor, state: State, positions: Sequence[int]) -> Tensor:
        return self.decoder.step(token_ids, state)


def choose_decode_step(model: AtlasModel, pool: StatePool, device: torch.device, config: EngineConfig) -> DecodeStep:
    """As `config.native_kernels` says; the log has what was chosen, and why. Where they are required it raises
    NotCoveredError or NativeUnavailableError."""
    level, reason = logging.INFO, "native_kernels is off"
    if config.native_kernels != "off":
        try:
            step = NativeStep(native_decoder(model))
        except (NotCoveredError, NativeUnavailableError) as error:
            if config.native_kernels == "require":
                raise
            level = logging.WARNING if isinstance(error, NativeUnavailableError) else logging.INFO
            reason = str(error)
        else:
            _logger.info("decode steps are computed by the native kernels")
            return step
    _logger.log(level, "decode steps are computed by torch's operators: %s", reason)
    uses_graphs = device.type == "cuda" and config.cuda_graphs
    return TorchStep(model, DecodeGraphs(model, pool, capture_cuda_graph) if uses_graphs else None)

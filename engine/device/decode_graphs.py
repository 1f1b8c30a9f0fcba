"""Decode steps captured as CUDA graphs: one launch in place of some hundred.

A graph has a fixed number of rows, so there is one for each power of two, over that many of the pool's first rows. What
it computes for rows beyond those that decode is dropped. It computes and does not write: logits and a delta, just as
`AtlasModel.step_delta` returns them, which the runner then commits and writes as ever.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from atlas_model.model import AtlasModel
from atlas_model.state import State
from atlas_model.state_delta import StateDelta
from engine.device.state_pool import StatePool

_logger = logging.getLogger(__name__)

Results = tuple[Tensor, StateDelta]
Replay = Callable[[], None]
Capture = Callable[[Callable[[], Results]], tuple[Results, Replay]]
"""Takes a computation of static shapes; returns its results, and what computes them again in the same places."""

_NUM_WARM_UPS = 3


@dataclass(frozen=True, slots=True)
class _Graph:
    token_ids: Tensor
    results: Results
    replay: Replay


class DecodeGraphs:
    """Captures all graphs at once, the largest first; a size that cannot be captured is left to eager steps."""

    def __init__(self, model: AtlasModel, pool: StatePool, capture: Capture) -> None:
        self._num_slots = pool.num_slots
        self._graphs: dict[int, _Graph] = {}
        for size in reversed(bucket_sizes(pool.num_slots)):
            state = pool.first_rows(size)
            token_ids = torch.zeros_like(state.position)

            def step(token_ids: Tensor = token_ids, state: State = state) -> Results:
                return model.step_delta(token_ids, state)

            try:
                results, replay = capture(step)
            except RuntimeError as error:
                _logger.warning("no CUDA graph for %d rows: %s", size, str(error).partition("\n")[0])
                continue
            self._graphs[size] = _Graph(token_ids, results, replay)

    def step(self, token_ids: Tensor) -> Results | None:
        """`step_delta` of the pool's first len(token_ids) rows; None where that was not captured.

        The next step overwrites the delta, but not the logits, which several steps' rows may be sampled from at once.
        """
        count = len(token_ids)
        size = bucket_size(count, self._num_slots)
        graph = self._graphs.get(size)
        if graph is None:
            return None
        graph.token_ids[:count].copy_(token_ids)
        graph.replay()
        logits, delta = graph.results
        return logits[:count].clone(), delta.of_first_rows(count, size)


def bucket_size(num_rows: int, num_slots: int) -> int:
    """The next power of two, or all slots if those are fewer."""
    return min(1 << (num_rows - 1).bit_length(), num_slots)


def bucket_sizes(num_slots: int) -> list[int]:
    return sorted({bucket_size(num_rows, num_slots) for num_rows in range(1, num_slots + 1)})


def capture_cuda_graph(step: Callable[[], Results]) -> tuple[Results, Replay]:
    """After some runs on a stream of its own, in which libraries set themselves up, as torch asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_NUM_WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return results, graph.replay

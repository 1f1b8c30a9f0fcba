"""Tokens a second of the model on the engine's slots, many rows at once: prefill in chunk form, decode in steps."""

from __future__ import annotations

from statistics import median

import torch

from atlas_model.checkpoint import load_checkpoint
from atlas_model.model import AtlasModel
from bench.clock import seconds_in_turns
from bench.gpu.parts import Notes, Settings
from engine.device.decode_graphs import DecodeGraphs, capture_cuda_graph
from engine.device.decode_steps import TorchStep
from engine.device.model_runner import ModelRunner
from engine.device.state_pool import StatePool

PREFILL_NUM_TOKENS = 1024
NUM_STEPS = 32


@torch.inference_mode()
def measure(settings: Settings, notes: Notes) -> None:
    torch.manual_seed(settings.seed)
    device = torch.device(settings.device)
    model = load_checkpoint(settings.model, device).model
    for batch_size in settings.batch_sizes:
        rows = _Rows(model, device, batch_size, with_graphs=False)
        calls = {"prefill": (rows.prefill, PREFILL_NUM_TOKENS), "decode, eager": (rows.decode, NUM_STEPS)}
        if device.type == "cuda":
            calls["decode, graphs"] = _Rows(model, device, batch_size, with_graphs=True).decode, NUM_STEPS
        for name, (call, num_tokens) in calls.items():
            (seconds,) = seconds_in_turns([call], settings.num_rounds, device)
            notes.figure(f"{name}, {batch_size} rows, tokens a second", batch_size * num_tokens / median(seconds))


class _Rows:
    """Sequences that have a slot each and read the same number of random tokens."""

    def __init__(self, model: AtlasModel, device: torch.device, batch_size: int, *, with_graphs: bool) -> None:
        pool = StatePool(model.config, batch_size, device)
        graphs = DecodeGraphs(model, pool, capture_cuda_graph) if with_graphs else None
        self._runner = ModelRunner(model, pool, device, TorchStep(model, graphs))
        self._slots = [pool.acquire() for _ in range(batch_size)]
        self._num_read = 0
        for slot in self._slots:
            pool.load(slot, model.initial_state(1))
        token_ids = torch.randint(model.config.vocab_size, (batch_size, PREFILL_NUM_TOKENS))
        self._pieces = token_ids.tolist()
        self._steps = token_ids.T[:NUM_STEPS].tolist()

    def prefill(self) -> None:
        self._runner.prefill(self._slots, self._pieces)
        self._num_read += PREFILL_NUM_TOKENS

    def decode(self) -> None:
        for token_ids in self._steps:
            self._runner.decode(self._slots, token_ids, [self._num_read] * len(self._slots))
            self._num_read += 1

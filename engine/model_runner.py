"""Runs the model on slots. Tensors only: which rows and how many tokens is the scheduler's decision.

Both forms read the rows, compute, and write the rows back as the last thing they do: when the model raises, no slot has
changed. Logits come back on the device, one row a sequence, after its last token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from atlas_model.model import AtlasModel
from engine.state_pool import StatePool


class ModelRunner:
    def __init__(self, model: AtlasModel, pool: StatePool, device: torch.device) -> None:
        self._model = model
        self._pool = pool
        self._device = device

    def prefill(self, slots: Sequence[int], pieces: Sequence[Sequence[int]]) -> Tensor:
        """Feeds each slot its piece (any lengths from 1 on) in chunk form -> logits [B, V]."""
        lengths = torch.tensor([len(piece) for piece in pieces])
        token_ids = torch.zeros((len(pieces), int(lengths.max())), dtype=torch.int64)
        for row, piece in enumerate(pieces):
            token_ids[row, : len(piece)] = torch.tensor(piece)
        state = self._pool.read(slots)
        output = self._model(token_ids.to(self._device), state, lengths=lengths.to(self._device), logits="last")
        self._pool.write(slots, output.state, state)
        logits: Tensor = output.logits
        return logits

    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> Tensor:
        """Feeds each slot one token in recurrent form -> logits [B, V]."""
        state = self._pool.read(slots)
        logits, new_state = self._model.step(torch.tensor(token_ids, device=self._device), state)
        self._pool.write(slots, new_state, state)
        return logits

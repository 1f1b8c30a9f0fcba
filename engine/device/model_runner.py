"""Runs the model on slots. Tensors only: which rows and how many tokens is the scheduler's decision.

Both forms read the rows and write what has changed of them where nothing can go wrong any more: when the model raises,
no slot has changed. Logits come back on the device, one row a sequence, after its last token.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atlas_model.model import AtlasModel, ModelOutput
from atlas_model.state import State
from atlas_model.telemetry import LayerSample, MemoryRecording
from atlas_model.upload import upload
from engine.device.decode_steps import DecodeStep, TorchStep
from engine.device.state_pool import StatePool
from engine.sampling.logprobs import PromptTargets, TokenLogprob, logprobs_of

_logger = logging.getLogger(__name__)

# By the row of the batch.
LayerSamples = dict[int, tuple[LayerSample, ...]]


@dataclass(frozen=True, slots=True)
class Prefilled:
    """logits: [B, V]. samples, logprobs: by row, of those that ask; of the memories as far as they can be taken."""

    logits: Tensor
    samples: LayerSamples
    logprobs: dict[int, list[TokenLogprob]]


class ModelRunner:
    """step: what computes the recurrent form; None is the model itself."""

    def __init__(
        self, model: AtlasModel, pool: StatePool, device: torch.device, step: DecodeStep | None = None
    ) -> None:
        self._model = model
        self._pool = pool
        self._device = device
        self._step = TorchStep(model) if step is None else step

    def prefill(
        self,
        slots: Sequence[int],
        pieces: Sequence[Sequence[int]],
        sampled_rows: Iterable[int] = (),
        targets: Mapping[int, PromptTargets] | None = None,
    ) -> Prefilled:
        """Feeds each slot its piece (any lengths from 1 on) in chunk form. sampled_rows: whose memories are sampled.
        targets: by row, the tokens whose log-probabilities are told."""
        lengths = torch.tensor([len(piece) for piece in pieces])
        token_ids = torch.zeros((len(pieces), int(lengths.max())), dtype=torch.int64)
        for row, piece in enumerate(pieces):
            token_ids[row, : len(piece)] = torch.tensor(piece)
        state = self._pool.read(slots)
        with MemoryRecording(self._model, {row: len(pieces[row]) for row in sampled_rows}) as recording:
            output = self._model(token_ids.to(self._device), state, lengths=lengths.to(self._device), logits="last")
        samples = _take_samples(recording, state, output)
        head, vocab_size = self._model.logits, self._model.config.vocab_size
        logprobs = {
            row: logprobs_of(output.hidden[row], each, head, vocab_size) for row, each in (targets or {}).items()
        }
        self._pool.write(slots, output.state, state)
        return Prefilled(output.logits, samples, logprobs)

    def decode(self, slots: Sequence[int], token_ids: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Feeds each slot one token in recurrent form -> logits [B, V]. positions: tokens fed before, of each.

        Where the slots come in the order of their rows, neither the states nor the logits are copied.
        """
        together = self._pool.bring_together(slots, self._step.first_row)
        place = {slot: index for index, slot in enumerate(slots)}
        order = [place[slot] for slot in together]
        state = self._pool.read(together)
        ids = upload([token_ids[index] for index in order], torch.int64, self._device)
        logits = self._step.feed(ids, state, [positions[index] for index in order])
        if together == list(slots):
            return logits
        back = sorted(range(len(order)), key=order.__getitem__)
        return logits.index_select(0, upload(back, torch.int64, self._device))

    def wait(self) -> None:
        """Returns when the device has done all that it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _take_samples(recording: MemoryRecording, before: State, output: ModelOutput) -> LayerSamples:
    samples = {}
    for row in recording.rows:
        try:
            sample = recording.sample(row, before, output)
        except Exception:
            # Boundary: numbers about a memory are never worth a request.
            _logger.exception("a memory could not be sampled")
            continue
        if sample is not None:
            samples[row] = sample
    return samples

"""Does a device compute what the CPU computes? Row 4 of ARCHITECTURE.md across devices, for each kind of product.

One ragged batch is read in chunk form and then decoded in recurrent form, on the CPU in float32 and on the device, both
fed the same tokens. Logits and every tensor of the state are compared as root mean square of the difference over that
of the CPU's. A snapshot made on the device must come back bit-equal, and go on on the CPU within the tolerance.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from atlas_model.checkpoint import Checkpoint, load_checkpoint
from atlas_model.model import AtlasModel
from atlas_model.state import State
from bench.gpu.parts import Notes, Settings
from engine.device.numerics import set_float32_products
from engine.sequence import SequenceState
from engine.snapshots.snapshot import SessionRecord, decode_snapshot, encode_snapshot
from engine.snapshots.tokens_digest import INITIAL_DIGEST

NUM_STEPS = 32
SNAPSHOT_PART_NUM_BYTES = 2**20
LENGTHS = (257, 64, 1, 130)

# The most that root mean squares may differ by. On a CPU, the demo in float32 is 5e-7 from float64; its products'
# operands rounded as TF32 does are 5e-4 from float32, and as bfloat16 (the dense ones of prefill) 5e-3.
LIMITS = {"float32": 2e-5, "tf32": 2e-3, "bfloat16": 2e-2}


@torch.inference_mode()
def measure(settings: Settings, notes: Notes) -> None:
    torch.manual_seed(settings.seed)
    device = torch.device(settings.device)
    reference, candidate = load_checkpoint(settings.model), load_checkpoint(settings.model, device)
    lengths = torch.tensor(LENGTHS)
    token_ids = torch.randint(reference.model.config.vocab_size, (len(LENGTHS), max(LENGTHS)))
    steps = torch.randint(reference.model.config.vocab_size, (NUM_STEPS, len(LENGTHS)))
    expected = _Run.of(reference.model, token_ids, lengths, steps)
    for products, limit in LIMITS.items():
        set_float32_products(device, allow_tf32=products == "tf32")
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=products == "bfloat16")
        actual = _Run.of(candidate.model, token_ids.to(device), lengths.to(device), steps.to(device), autocast)
        for what, difference in actual.differences(expected).items():
            notes.check(f"{products}: {what}", difference, limit)
        if products == "float32":
            snapshot = _round_trip(candidate, actual.prefilled.gather(torch.tensor([0], device=device)))
            notes.check("snapshot and back, changed tensors", _num_changed(snapshot, actual.prefilled), 0)
            moved, _ = _decode(reference.model, steps[:, :1], snapshot)
            difference = relative_difference(moved, expected.step_logits[:, :1])
            notes.check("snapshot, logits of the CPU's steps after it", difference, limit)


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of the expected; 0 when both are zero."""
    expected = expected.double().cpu()
    difference = (actual.double().cpu() - expected).square().mean().sqrt()
    scale = expected.square().mean().sqrt()
    return float(difference / scale) if scale > 0 else float(difference)


def worst_difference(actual: State, expected: State) -> float:
    theirs = expected.named_tensors()
    return max(relative_difference(tensor, theirs[name]) for name, tensor in actual.named_tensors().items())


@dataclass(frozen=True, slots=True)
class _Run:
    """A ragged batch read in chunk form, and what single tokens after it give."""

    logits: Tensor
    prefilled: State
    step_logits: Tensor
    decoded: State

    @classmethod
    def of(
        cls,
        model: AtlasModel,
        token_ids: Tensor,
        lengths: Tensor,
        steps: Tensor,
        prefill_context: AbstractContextManager[object] | None = None,
    ) -> Self:
        with prefill_context or nullcontext():
            output = model(token_ids, lengths=lengths, logits="last")
        return cls(output.logits, output.state, *_decode(model, steps, output.state))

    def differences(self, expected: _Run) -> dict[str, float]:
        return {
            "logits after prefill": relative_difference(self.logits, expected.logits),
            "state after prefill, worst tensor": worst_difference(self.prefilled, expected.prefilled),
            "logits of the steps": relative_difference(self.step_logits, expected.step_logits),
            "state after the steps, worst tensor": worst_difference(self.decoded, expected.decoded),
        }


def _decode(model: AtlasModel, steps: Tensor, state: State) -> tuple[Tensor, State]:
    """Logits [steps, B, V] and the last state of feeding `steps` [steps, B] one by one."""
    logits = []
    for token_ids in steps:
        row, state = model.step(token_ids, state)
        logits.append(row)
    return torch.stack(logits), state


def _round_trip(checkpoint: Checkpoint, state: State) -> State:
    """One row to bytes and back, on the CPU."""
    record = SessionRecord(state=SequenceState(state.to("cpu"), INITIAL_DIGEST))
    snapshot = encode_snapshot(record, checkpoint.fingerprint, SNAPSHOT_PART_NUM_BYTES)
    decoded = decode_snapshot(snapshot.parts, checkpoint.model.config, checkpoint.fingerprint, snapshot.digest)
    return decoded.state.tensors


def _num_changed(snapshot: State, batch: State) -> int:
    """How many tensors of the snapshot are not, bit for bit, the batch's first row."""
    row = {name: tensor[:1].cpu() for name, tensor in batch.named_tensors().items()}
    return sum(not torch.equal(tensor, row[name]) for name, tensor in snapshot.named_tensors().items())

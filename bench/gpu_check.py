"""`python -m bench gpu_check`: does a device compute what the CPU computes, and how fast? Runs unattended.

Equality: the same ragged batch is read in chunk form and then decoded in recurrent form, on the CPU and on the device,
both fed the same tokens; logits and every tensor of the state are compared as root mean square of the difference over
that of the CPU's. A snapshot made on the device must come back bit-equal, and continue on the CPU within the tolerance.
Exit status 1 when a figure is beyond its tolerance, 2 when there is no such device.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from atlas_model.checkpoint import Checkpoint, load_checkpoint
from atlas_model.model import AtlasModel
from atlas_model.state import State
from bench import report
from engine.sequence import SequenceState
from engine.sessions.storage import PART_NUM_BYTES
from engine.snapshot import SessionRecord, decode_snapshot, encode_snapshot
from engine.tokens_digest import INITIAL_DIGEST

# Root mean square of the difference over that of the reference, float32, without TF32.
MAX_LOGITS_DIFFERENCE = 1e-3
MAX_STATE_DIFFERENCE = 1e-3
NUM_STEPS = 32
PREFILL_NUM_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Check:
    """One figure and the most that it may be."""

    name: str
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        return self.value <= self.limit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda", help="what is compared with the CPU; cpu compares it with itself")
    parser.add_argument("--model", type=Path, default=report.SHIPPED_MODEL, metavar="DIR", help="checkpoint folder")
    parser.add_argument("--batch-sizes", default="1,8,64", help="rows at once, for the throughput")
    parser.add_argument("--rounds", type=int, default=5, help="how often each throughput is measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", default=report.RESULTS / "gpu_check.json", help="default: %(default)s"
    )


def run(arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench gpu_check: torch sees no CUDA device here (--device cpu runs the same checks)", file=sys.stderr)
        raise SystemExit(2)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(arguments.seed)
    reference, candidate = load_checkpoint(arguments.model), load_checkpoint(arguments.model, device)
    with torch.inference_mode():
        checks = compare(reference, candidate, device)
        throughput = [
            measure_throughput(candidate.model, device, int(size), arguments.rounds)
            for size in arguments.batch_sizes.split(",")
        ]
    for check in checks:
        print(
            f"{check.name:<34} {check.value:.2e}  (at most {check.limit:.0e})  {'ok' if check.holds else 'TOO LARGE'}"
        )
    for row in throughput:
        print(
            f"batch {row['batch_size']:>4}   prefill {row['prefill_tokens_per_second']:>12,.0f} tokens/s   "
            f"decode {row['decode_tokens_per_second']:>10,.0f} tokens/s"
        )
    document: report.Json = {
        **report.header("gpu_check"),
        "model": arguments.model.name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cuda": torch.version.cuda,
        "checks": [{**asdict(check), "holds": check.holds} for check in checks],
        "throughput": throughput,
    }
    report.publish(document, {}, arguments.json)
    if not all(check.holds for check in checks):
        raise SystemExit(1)


def compare(reference: Checkpoint, candidate: Checkpoint, device: torch.device) -> list[Check]:
    """Prefill, decode and a snapshot, each against the CPU."""
    config = reference.model.config
    lengths = torch.tensor([257, 64, 1, 130])
    token_ids = torch.randint(config.vocab_size, (4, int(lengths.max())))
    steps = torch.randint(config.vocab_size, (NUM_STEPS, 4))
    expected = reference.model(token_ids, lengths=lengths, logits="last")
    actual = candidate.model(token_ids.to(device), lengths=lengths.to(device), logits="last")
    checks = [
        Check("prefill logits", relative_difference(actual.logits, expected.logits), MAX_LOGITS_DIFFERENCE),
        Check("prefill state, worst tensor", worst_difference(actual.state, expected.state), MAX_STATE_DIFFERENCE),
    ]
    snapshot = _round_trip(candidate, actual.state.gather(torch.tensor([0], device=device)))
    expected_logits, expected_state = _decode(reference.model, steps, expected.state)
    actual_logits, actual_state = _decode(candidate.model, steps.to(device), actual.state)
    moved_logits, _ = _decode(reference.model, steps[:, :1], snapshot)
    return [
        *checks,
        Check("decode logits, 32 steps", relative_difference(actual_logits, expected_logits), MAX_LOGITS_DIFFERENCE),
        Check("decode state, worst tensor", worst_difference(actual_state, expected_state), MAX_STATE_DIFFERENCE),
        Check("snapshot and back, changed tensors", _num_changed(snapshot, actual.state), 0),
        Check(
            "snapshot decoded on the CPU, logits",
            relative_difference(moved_logits, expected_logits[:, :1]),
            MAX_LOGITS_DIFFERENCE,
        ),
    ]


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of the expected; 0 when both are zero."""
    expected = expected.double().cpu()
    difference = (actual.double().cpu() - expected).square().mean().sqrt()
    scale = expected.square().mean().sqrt()
    return float(difference / scale) if scale > 0 else float(difference)


def worst_difference(actual: State, expected: State) -> float:
    theirs = expected.named_tensors()
    return max(relative_difference(tensor, theirs[name]) for name, tensor in actual.named_tensors().items())


def measure_throughput(model: AtlasModel, device: torch.device, batch_size: int, num_rounds: int) -> report.Json:
    """Tokens per second of the whole batch, medians; the first round is not counted."""
    token_ids = torch.randint(model.config.vocab_size, (batch_size, PREFILL_NUM_TOKENS), device=device)
    state = model.initial_state(batch_size)
    steps = token_ids.T[:NUM_STEPS]
    prefill = [_seconds(device, lambda: model(token_ids, state, logits="last")) for _ in range(num_rounds + 1)]
    decode = [_seconds(device, lambda: _decode(model, steps, state)) for _ in range(num_rounds + 1)]
    return {
        "batch_size": batch_size,
        "prefill_tokens_per_second": token_ids.numel() / median(prefill[1:]),
        "decode_tokens_per_second": steps.numel() / median(decode[1:]),
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
    snapshot = encode_snapshot(record, checkpoint.fingerprint, PART_NUM_BYTES)
    decoded = decode_snapshot(snapshot.parts, checkpoint.model.config, checkpoint.fingerprint, snapshot.digest)
    return decoded.state.tensors


def _num_changed(snapshot: State, batch: State) -> int:
    """How many tensors of the snapshot are not, bit for bit, the batch's first row."""
    row = {name: tensor[:1].cpu() for name, tensor in batch.named_tensors().items()}
    return sum(not torch.equal(tensor, row[name]) for name, tensor in snapshot.named_tensors().items())


def _seconds(device: torch.device, function: Callable[[], object]) -> float:
    _wait(device)
    began = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""`python -m bench context_length`: what a token costs, and a snapshot weighs, by how much was read before. Inside it.

A memory of constant size should make both the same everywhere. At each position, rounded down to whole chunks so that
all stand alike in theirs, the next tokens of a text are prefilled and an answer is decoded from there; the positions
take turns, there and back, so that whatever else the machine does meets all of them, and a ratio is the median of the
turns' own ratios. An answer is best as long as some chunks, for the tokens that end one cost more than the others.

The text is really read as far as `--read-to`. Beyond it a position is the last state with its counter set forward: what
a step costs depends on the position through that counter alone, by the angles of attention and the place in a chunk.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median

import torch

from atlas_model.checkpoint import Checkpoint
from bench import report
from bench.clock import median_ratio
from bench.engine.hand_fed import HandFedCore, endless_token_ids
from bench.engine.models import add_model_arguments, engine_settings, model_header, open_model
from bench.engine.stepper import chunk_period
from bench.plot import draw_context_length
from bench.workload import parse_counts, parse_length
from engine.sequence import SequenceState
from engine.sessions.storage import PART_NUM_BYTES
from engine.snapshots.snapshot import SessionRecord, encode_snapshot

_READ_NUM_TOKENS = 65536


@dataclass(frozen=True, slots=True)
class PositionCost:
    """Seconds a token, medians over the turns, and the ratios to the reference positions.

    was_read: False where the position is set forward.
    """

    position: int
    was_read: bool
    snapshot_num_bytes: int
    prefill_seconds: float
    prefill_ratio: float
    decode_seconds: float
    decode_ratio: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--positions", type=parse_counts, default="1k,8k,64k,1m,10m", help="in tokens, ascending")
    parser.add_argument("--prefill-reference", type=parse_length, default="8k", help="whose prefill is 1")
    parser.add_argument("--decode-reference", type=parse_length, default="1k", help="whose decode is 1")
    parser.add_argument("--read-to", type=parse_length, default="1m", help="how far text is really read")
    parser.add_argument("--prefill-tokens", type=parse_length, default="4k", help="tokens prefilled a turn")
    parser.add_argument("--decode-tokens", type=parse_length, default=64, help="tokens decoded a turn")
    parser.add_argument("--turns", type=int, default=9, help="how often each is repeated")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="books to read; default: generated prose")
    add_model_arguments(parser)
    report.add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    for name in ("prefill_reference", "decode_reference"):
        if getattr(arguments, name) not in arguments.positions:
            raise SystemExit(f"bench context_length: --{name.replace('_', '-')} is none of the --positions")
    checkpoint = open_model(arguments)
    lengths = ContextLengths(checkpoint, arguments)
    costs = lengths.measure(arguments.turns)
    print(f"{'position':>12} {'prefill us':>11} {'ratio':>6} {'decode ms':>10} {'ratio':>6} {'snapshot':>12}")
    for cost in costs:
        print(
            f"{cost.position:>12,} {1e6 * cost.prefill_seconds:>11.1f} {cost.prefill_ratio:>6.3f}"
            f" {1e3 * cost.decode_seconds:>10.3f} {cost.decode_ratio:>6.3f} {cost.snapshot_num_bytes:>12,}"
            f"{'' if cost.was_read else '  set forward'}"
        )
    if arguments.plot is not None:
        draw_context_length([asdict(cost) for cost in costs], arguments.plot)
    document: report.Json = {
        **report.header("context_length"),
        **model_header(checkpoint, arguments),
        "prefill_reference": arguments.prefill_reference,
        "decode_reference": arguments.decode_reference,
        "num_turns": arguments.turns,
        "costs": [asdict(cost) for cost in costs],
    }
    report.publish(document, {}, arguments.json)


class ContextLengths:
    """One session's states at every position, and a core to go on from them."""

    def __init__(self, checkpoint: Checkpoint, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._fingerprint = checkpoint.fingerprint
        self._core = HandFedCore(checkpoint, engine_settings(arguments))
        self._token_ids = endless_token_ids(checkpoint, arguments.corpus)
        self._period = chunk_period(checkpoint.model)
        self._states = self._read(arguments.positions, arguments.read_to)
        self._next_token_ids = list(islice(self._token_ids, arguments.prefill_tokens))

    def measure(self, num_turns: int) -> list[PositionCost]:
        prefill: dict[int, list[float]] = {position: [] for position in self._states}
        decode: dict[int, list[float]] = {position: [] for position in self._states}
        for turn in range(num_turns + 1):
            for position in list(self._states)[:: 1 if turn % 2 else -1]:
                state = self._states[position]
                _, seconds = self._core.feed(self._next_token_ids, state)
                decode_seconds = self._core.decode(state, self._arguments.decode_tokens)
                # The first turn is not counted.
                if turn > 0:
                    prefill[position].append(seconds / len(self._next_token_ids))
                    decode[position].append(decode_seconds)
        return [
            PositionCost(
                position=state.position,
                was_read=position <= self._arguments.read_to,
                snapshot_num_bytes=self._snapshot_num_bytes(state),
                prefill_seconds=median(prefill[position]),
                prefill_ratio=median_ratio(prefill[position], prefill[self._arguments.prefill_reference]),
                decode_seconds=median(decode[position]),
                decode_ratio=median_ratio(decode[position], decode[self._arguments.decode_reference]),
            )
            for position, state in self._states.items()
        ]

    def _read(self, positions: Sequence[int], read_to: int) -> dict[int, SequenceState]:
        states: dict[int, SequenceState] = {}
        state: SequenceState | None = None
        for position in positions:
            target = max(self._period, position // self._period * self._period)
            if position > read_to and state is not None:
                states[position] = _set_forward(state, target)
                continue
            while (read := 0 if state is None else state.position) < target:
                state, _ = self._core.feed(list(islice(self._token_ids, min(_READ_NUM_TOKENS, target - read))), state)
            assert state is not None
            states[position] = state
        return states

    def _snapshot_num_bytes(self, state: SequenceState) -> int:
        return encode_snapshot(SessionRecord(state=state), self._fingerprint, PART_NUM_BYTES).num_bytes


def _set_forward(state: SequenceState, position: int) -> SequenceState:
    return replace(state, tensors=replace(state.tensors, position=torch.tensor([position])))

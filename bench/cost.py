"""`python -m bench cost`: what a token and a snapshot cost, early and late in a session. It looks inside the engine.

A memory of constant size should make time per token and bytes per session independent of how much was read. Early and
late are measured in turns in one process, so that whatever else the machine does meets both; a ratio is the median of
the turns' own ratios.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from statistics import median

import torch

from atlas_model.checkpoint import Checkpoint, load_checkpoint
from atlas_model.telemetry import MemoryRecording
from bench import report
from bench.cost_store import measure_store
from bench.workload import open_prose, parse_length
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.sampling_params import SamplingParams
from engine.sequence import FinishReason, Sequence, SequenceState
from engine.sessions.storage import PART_NUM_BYTES
from engine.snapshot import SessionRecord, encode_snapshot

PIECE_NUM_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same quantity early and late: medians over the turns, and the median of late over early."""

    early_position: int
    late_position: int
    early_seconds: float
    late_seconds: float
    ratio: float
    num_turns: int


@dataclass(frozen=True, slots=True)
class SampleCost:
    """What a sample of the memory adds to the step that it is taken in, and to all the steps between two of them."""

    seconds: float
    num_tokens_apart: int
    share_of_prefill: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prefill-lengths", default="4k,64k", help="a short and a long prompt")
    parser.add_argument("--positions", default="1k,1m", help="where in a session to decode; the late one takes a while")
    parser.add_argument("--decode-tokens", type=int, default=64, help="tokens decoded per turn")
    parser.add_argument("--turns", type=int, default=5, help="how often each comparison is repeated")
    parser.add_argument("--store-rounds", type=int, default=30, help="samples, saves and loads to time")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to save; default: the temporary folder")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="books to read; default: generated prose")
    parser.add_argument("--threads", type=int, help="torch's threads; default: torch's own choice")
    parser.add_argument("--device", default="cpu")
    report.add_model_argument(parser)
    report.add_json_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    short, long = _two(arguments.prefill_lengths)
    early, late = _two(arguments.positions)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    checkpoint = load_checkpoint(arguments.model)
    config = EngineConfig(
        max_num_sequences=1,
        max_num_batched_tokens=PIECE_NUM_TOKENS,
        max_num_piece_tokens=PIECE_NUM_TOKENS,
        device=arguments.device,
    )
    cost = Cost(checkpoint, config, arguments.corpus)
    prefill = cost.compare_prefill(short, long, arguments.turns)
    print(f"prefill          {_describe(prefill)} a token")
    states = cost.read_to(early, late)
    decode = cost.compare_decode(*states, num_tokens=arguments.decode_tokens, num_turns=arguments.turns)
    print(f"decode           {_describe(decode)} a token")
    early_num_bytes, late_num_bytes = (cost.snapshot_num_bytes(state) for state in states)
    print(f"snapshot         {early_num_bytes:,} bytes at {early:,}, {late_num_bytes:,} bytes at {late:,}")
    sample = cost.measure_sample(states[1], prefill.late_seconds, arguments.store_rounds)
    print(
        f"memory sample    {1e3 * sample.seconds:.2f} ms, {100 * sample.share_of_prefill:.2f} % of the prefill of the "
        f"{sample.num_tokens_apart:,} tokens between two"
    )
    store = measure_store(
        states[1], checkpoint.model.config, checkpoint.fingerprint, arguments.store_rounds, arguments.folder
    )
    print(f"save             {1e3 * store.save_seconds:.2f} ms, {store.save_ratio:.2f} of the bare calls")
    print(f"load             {1e3 * store.load_seconds:.2f} ms, {store.load_ratio:.2f} of the bare calls")
    document: report.Json = {
        **report.header("cost"),
        "model": arguments.model.name,
        "device": arguments.device,
        "num_threads": torch.get_num_threads(),
        "prefill_seconds_per_token": asdict(prefill),
        "decode_seconds_per_token": asdict(decode),
        "snapshot_num_bytes": {"early": early_num_bytes, "late": late_num_bytes},
        "memory_sample": asdict(sample),
        "store": asdict(store),
    }
    report.publish(document, {}, arguments.json)


class Cost:
    """One engine core, driven by hand."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig, corpus: Path | None) -> None:
        self._checkpoint = checkpoint
        self._core = EngineCore(checkpoint, config)
        self._token_ids = _endless_token_ids(checkpoint, corpus)

    def compare_prefill(self, short: int, long: int, num_turns: int) -> Comparison:
        """Seconds per token of a short and of a long prompt, each read from its first token to its last."""
        token_ids = list(islice(self._token_ids, long))
        self._feed(token_ids[:short], None)
        turns = [
            (self._feed(token_ids[:short], None)[1] / short, self._feed(token_ids, None)[1] / long)
            for _ in range(num_turns)
        ]
        return _compare(short, long, turns)

    def read_to(self, early: int, late: int) -> tuple[SequenceState, SequenceState]:
        """The states of one session after `early` and after `late` tokens of prose."""
        early_state, _ = self._feed(list(islice(self._token_ids, early)), None)
        state = early_state
        while state.position < late:
            token_ids = list(islice(self._token_ids, min(64 * PIECE_NUM_TOKENS, late - state.position)))
            state, _ = self._feed(token_ids, state)
        return early_state, state

    def compare_decode(self, early: SequenceState, late: SequenceState, num_tokens: int, num_turns: int) -> Comparison:
        """Median seconds between two tokens of an answer, early and late in the session."""
        self._decode(early, num_tokens)
        turns = [(self._decode(early, num_tokens), self._decode(late, num_tokens)) for _ in range(num_turns)]
        return _compare(early.position, late.position, turns)

    def measure_sample(self, state: SequenceState, prefill_seconds: float, num_rounds: int) -> SampleCost:
        """Median over the rounds, in one piece of a prompt; `prefill_seconds` are a token's."""
        model, apart = self._checkpoint.model, EngineConfig().memory_sample_tokens
        device = model.embedding.weight.device
        before = state.tensors.to(device)
        token_ids = torch.tensor([list(islice(self._token_ids, PIECE_NUM_TOKENS))], device=device)
        moments = []
        with torch.inference_mode(), MemoryRecording(model, {0: PIECE_NUM_TOKENS}) as recording:
            output = model(token_ids, before, logits="last")
            for _ in range(num_rounds + 1):
                moments.append(time.perf_counter())
                recording.sample(0, before, output)
        seconds = median(later - earlier for earlier, later in pairwise(moments))
        return SampleCost(seconds, apart, seconds / (apart * prefill_seconds))

    def snapshot_num_bytes(self, state: SequenceState) -> int:
        return encode_snapshot(SessionRecord(state=state), self._checkpoint.fingerprint, PART_NUM_BYTES).num_bytes

    def _feed(self, token_ids: list[int], state: SequenceState | None) -> tuple[SequenceState, float]:
        """The state after the tokens, and the seconds that it took."""
        began = time.perf_counter()
        self._core.add(Sequence("cost", token_ids, state=state))
        while self._core.has_work:
            for output in self._core.step():
                if output.error is not None:
                    raise output.error
                if output.finish_reason is not None:
                    assert output.state is not None
                    return output.state, time.perf_counter() - began
        raise AssertionError("the core ended without an output")

    def _decode(self, state: SequenceState, num_tokens: int) -> float:
        """The median gap between the outputs of one greedy answer; the first waits for the prompt and is no gap."""
        params = SamplingParams(max_tokens=num_tokens + 1, temperature=0.0, ignore_eos=True)
        prompt = self._checkpoint.chat_format.generation_prompt(self._checkpoint.tokenizer)
        self._core.add(Sequence("cost", prompt, params, state))
        moments: list[float] = []
        while self._core.has_work:
            for output in self._core.step():
                if output.error is not None:
                    raise output.error
                if output.finish_reason not in (None, FinishReason.LENGTH):
                    raise AssertionError(f"the answer ended by {output.finish_reason}")
                moments.append(time.perf_counter())
        return median(later - earlier for earlier, later in pairwise(moments))


def _endless_token_ids(checkpoint: Checkpoint, corpus: Path | None) -> Iterator[int]:
    """A session's first tokens, then prose for ever."""
    tokenizer, chat_format = checkpoint.tokenizer, checkpoint.chat_format
    yield from chat_format.session_start(tokenizer)
    yield from chat_format.document_start(tokenizer)
    for sentence in open_prose(corpus).passage(random.Random(0)):
        yield from tokenizer.encode(sentence.text + ("\n" if sentence.ends_paragraph else " "))


def _compare(early: int, late: int, turns: list[tuple[float, float]]) -> Comparison:
    return Comparison(
        early_position=early,
        late_position=late,
        early_seconds=median(first for first, _ in turns),
        late_seconds=median(second for _, second in turns),
        ratio=median(second / first for first, second in turns),
        num_turns=len(turns),
    )


def _describe(comparison: Comparison) -> str:
    return (
        f"{1e3 * comparison.early_seconds:.3f} ms at {comparison.early_position:,}, "
        f"{1e3 * comparison.late_seconds:.3f} ms at {comparison.late_position:,}, ratio {comparison.ratio:.3f},"
    )


def _two(text: str) -> tuple[int, int]:
    first, second = (parse_length(part) for part in text.split(","))
    return first, second

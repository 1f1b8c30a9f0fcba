"""`python -m bench cost`: what a snapshot and a sample of the memory cost. It looks inside the engine.

What a token costs, early and late in a session, is `python -m bench context_length`; going on is `resume`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from statistics import median

import torch

from atlas_model.checkpoint import Checkpoint, load_checkpoint
from atlas_model.telemetry import MemoryRecording
from bench import report
from bench.engine.cost_store import measure_store
from bench.engine.hand_fed import HandFedCore, endless_token_ids
from bench.workload import parse_length
from engine.config import EngineConfig
from engine.sequence import SequenceState

_PIECE_NUM_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class SampleCost:
    """What a sample of the memory adds to the step that it is taken in, and to all the steps between two of them."""

    seconds: float
    num_tokens_apart: int
    share_of_prefill: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--length", type=parse_length, default="8k", help="tokens that the session has read")
    parser.add_argument("--store-rounds", type=int, default=30, help="samples, saves and loads to time")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to save; default: the temporary folder")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="books to read; default: generated prose")
    parser.add_argument("--threads", type=parse_length, help="torch's threads; default: torch's own choice")
    parser.add_argument("--device", default="cpu")
    report.add_model_argument(parser)
    report.add_json_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    checkpoint = load_checkpoint(arguments.model)
    text = endless_token_ids(checkpoint, arguments.corpus)
    state, seconds = HandFedCore(checkpoint, EngineConfig(device=arguments.device)).feed(
        list(islice(text, arguments.length))
    )
    token_ids = list(islice(text, _PIECE_NUM_TOKENS))
    sample = measure_sample(checkpoint, state, token_ids, seconds / arguments.length, arguments.store_rounds)
    print(
        f"memory sample    {1e3 * sample.seconds:.2f} ms, {100 * sample.share_of_prefill:.2f} % of the prefill of the "
        f"{sample.num_tokens_apart:,} tokens between two"
    )
    store = measure_store(
        state, checkpoint.model.config, checkpoint.fingerprint, arguments.store_rounds, arguments.folder
    )
    print(f"save             {1e3 * store.save_seconds:.2f} ms, {store.save_ratio:.2f} of the bare calls")
    print(f"load             {1e3 * store.load_seconds:.2f} ms, {store.load_ratio:.2f} of the bare calls")
    document: report.Json = {
        **report.header("cost"),
        "model": arguments.model.name,
        "device": arguments.device,
        "num_threads": torch.get_num_threads(),
        "memory_sample": asdict(sample),
        "store": asdict(store),
    }
    report.publish(document, {}, arguments.json)


def measure_sample(
    checkpoint: Checkpoint, state: SequenceState, token_ids: list[int], prefill_seconds: float, num_rounds: int
) -> SampleCost:
    """Median over the rounds, in one piece of a prompt; `prefill_seconds` are a token's."""
    model, apart = checkpoint.model, EngineConfig().memory_sample_tokens
    device = model.embedding.weight.device
    before = state.tensors.to(device)
    moments = []
    with torch.inference_mode(), MemoryRecording(model, {0: len(token_ids)}) as recording:
        output = model(torch.tensor([token_ids], device=device), before, logits="last")
        for _ in range(num_rounds + 1):
            moments.append(time.perf_counter())
            recording.sample(0, before, output)
    seconds = median(later - earlier for earlier, later in pairwise(moments))
    return SampleCost(seconds, apart, seconds / (apart * prefill_seconds))

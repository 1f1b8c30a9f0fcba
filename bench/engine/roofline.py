"""`python -m bench roofline`: how near decode steps and prefill pieces come to the machine's limit. Inside the engine.

A step is what the engine really does with the rows of a batch: read their slots, run the model, write the slots. Its
limit is the time of two things that no implementation can leave out, measured beside it, in turns with it:

    products   its matrix products alone, by torch's operators in the step's order, over all layers, with the model's
               own weights: so they come out of the cache or out of memory as they do in the step. Where the step is
               the native kernels', its products by them too, and the shorter time of the two counts.
               Of a decode step only the dense ones, tokens by weights: what is multiplied by a row's own state is
               bound by reading that state, which is the other part. Of a prefill piece all that an aligned piece of
               that length makes, the memory's included; those inside of fused attention are left out.
    state      reading and writing, in plain buffers, as many bytes as `atlas_model.traffic` says: of a decode step the
               state once, and what a token adds to it; what happens where a chunk ends is spread over the chunk's
               tokens. Of a prefill piece the whole state in and out.

A factor is seconds over limit, the median of the turns' own. A turn of decode is one whole chunk of steps, so that what
a chunk's end costs is in it. Aligned rows end their chunks together; the others stand all over theirs.

Beside it stands the roof, which knows no operators: the operations that the configuration counts, at the rate of large
square products, or its bytes, parameters and state read and written in plain buffers, whichever takes longer.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import asdict

import torch

from bench import report
from bench.engine.machine import Machine
from bench.engine.models import add_model_arguments, model_header, open_model
from bench.engine.roofline_steps import StepCost, measure_decode, measure_prefill, measure_sampling
from bench.engine.stepper import chunk_period
from bench.workload import parse_counts

DECODE_GOAL, PREFILL_GOAL = 1.5, 2.0
_DTYPES = (torch.float32, torch.bfloat16)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--batch-sizes", type=parse_counts, default="1,8,32,256", help="rows of a decode step")
    parser.add_argument("--pieces", type=parse_pieces, default="1x512,1x1024,4x256", help="rows x tokens of a prefill")
    parser.add_argument("--turns", type=int, default=3, help="chunks of decode steps, and prefills, that are timed")
    parser.add_argument("--buffer", type=int, default=256, help="MiB, more than the last-level cache")
    report.add_json_argument(parser)


def parse_pieces(text: str) -> list[tuple[int, int]]:
    """`4x256,1x1024`: rows and tokens of each. Raises ArgumentTypeError."""
    pieces = []
    for item in text.split(","):
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", item)
        if match is None:
            raise argparse.ArgumentTypeError(f"not rows x tokens, like 4x256: {item!r}")
        pieces.append((int(match[1]), int(match[2])))
    return pieces


@torch.inference_mode()
def run(arguments: argparse.Namespace) -> None:
    checkpoint = open_model(arguments)
    model = checkpoint.model
    if any(num_tokens % chunk_period(model) for _, num_tokens in arguments.pieces):
        raise SystemExit(f"bench roofline: --pieces must be a multiple of {chunk_period(model)} tokens, the chunk")
    machine = Machine(arguments.device, arguments.turns, arguments.buffer * 2**20)
    rates = {str(dtype).removeprefix("torch."): machine.product_rate(dtype) for dtype in _DTYPES}
    print("memory     " + ", ".join(f"{name} {1e-9 * each:.1f} GB/s" for name, each in machine.bandwidth.items()))
    print("products   " + ", ".join(f"{name} {1e-9 * each:.0f} GFLOP/s" for name, each in rates.items()))
    columns = ("ms", "products", "native", "state", "limit", "factor", "goal", "roof")
    print(f"{'':<24}" + "".join(f"{column:>10}" for column in columns))
    decodes = []
    for batch_size in arguments.batch_sizes:
        for is_aligned in (True, False) if batch_size > 1 else (True,):
            decodes.append(
                measure_decode(
                    model,
                    batch_size,
                    machine,
                    is_aligned=is_aligned,
                    native_kernels=arguments.native_kernels,
                )
            )
            _print_cost(decodes[-1], DECODE_GOAL)
    prefills = []
    for batch_size, num_tokens in arguments.pieces:
        for is_aligned in (True, False):
            prefills.append(measure_prefill(model, batch_size, num_tokens, machine, is_aligned=is_aligned))
            _print_cost(prefills[-1], PREFILL_GOAL)
    samplings = [measure_sampling(model, each, machine) for each in arguments.batch_sizes]
    steps = {each.batch_size: each.seconds for each in decodes}
    for each in samplings:
        shares = (
            f"{name} {1e3 * seconds:.3f} ({seconds / steps[each.batch_size]:.1%})"
            for name, seconds in each.seconds.items()
        )
        print(f"sampling {each.batch_size:>4} rows, of a step: {', '.join(shares)}", flush=True)
    document: report.Json = {
        **report.header("roofline"),
        **model_header(checkpoint, arguments),
        "num_turns": arguments.turns,
        "bandwidth": machine.bandwidth,
        "square_product_flops_per_second": rates,
        "decode": [{**asdict(each), "goal": DECODE_GOAL} for each in decodes],
        "prefill": [{**asdict(each), "goal": PREFILL_GOAL} for each in prefills],
        "ratios": ratios(decodes),
        "sampling": [asdict(each) for each in samplings],
    }
    report.publish(document, {}, arguments.json)


def ratios(decodes: Sequence[StepCost]) -> list[report.Json]:
    """What a larger batch costs: a step's seconds, and a token's, over those of the first batch size."""
    first = decodes[0]
    return [
        {
            "batch_size": each.batch_size,
            "is_aligned": each.is_aligned,
            "step_ratio": each.seconds / first.seconds,
            "token_ratio": (each.seconds / each.batch_size) / (first.seconds / first.batch_size),
        }
        for each in decodes
    ]


def _print_cost(cost: StepCost, goal: float) -> None:
    what = "decode" if cost.num_tokens is None else "prefill"
    size = f"{cost.batch_size}" if cost.num_tokens is None else f"{cost.batch_size}x{cost.num_tokens}"
    times = (
        cost.seconds,
        cost.products_seconds,
        cost.native_products_seconds,
        cost.state_seconds,
        cost.limit_seconds,
    )
    cells = "".join(f"{'' if each is None else f'{1e3 * each:.3f}':>10}" for each in times)
    print(
        f"{what:<8}{size:>6} {'aligned' if cost.is_aligned else 'apart':<9}{cells}"
        f"{cost.factor:>10.2f}{goal:>10.1f}{1e3 * cost.roof_seconds:>10.3f}",
        flush=True,
    )

"""`python -m bench profile`: where the time of a prefill piece and of a decode step goes, as shares. Inside the engine.

The engine core runs as it does under load, scheduler, sampler and text included, while another thread looks at its
stack some five hundred times a second; the product is not touched, and how much slower it is for being looked at is
reported. The time between two looks counts for one part: that of the innermost frame that the table below knows. What
is in none is named `other`, so the shares add up to 1. On a device that works by itself they are the host's.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice

from atlas_model.checkpoint import Checkpoint
from bench import report
from bench.engine.core_driver import CoreDriver
from bench.engine.models import add_model_arguments, engine_settings, model_header, open_model
from bench.stack_samples import Frame, StackSamples, place
from bench.workload import parse_counts, parse_length

PARTS: Sequence[tuple[str, str]] = (
    ("torch/nn/modules/sparse.py", "embedding"),
    ("torch/nn/modules/normalization.py", "norms"),
    ("atlas_model/native/", "native step"),
    ("atlas_model/mixers.py", "projections"),
    ("atlas_model/convolution.py", "convolution"),
    ("atlas_model/gates.py", "gates"),
    ("atlas_model/feature_map.py", "feature map"),
    ("atlas_model/memory/update.py LinearUpdate.read", "memory read"),
    ("atlas_model/memory/update.py LinearUpdate._multiply", "memory read"),
    ("atlas_model/memory/update.py TokenMuonUpdate.read", "memory read"),
    ("atlas_model/memory/recurrent.py read_token", "memory read"),
    ("atlas_model/neural_memory.py NeuralMemory._normed", "memory read"),
    ("atlas_model/neural_memory.py NeuralMemory.read_anchor", "memory read"),
    ("atlas_model/memory/update.py", "memory commit"),
    ("atlas_model/memory/rule.py", "memory commit"),
    ("atlas_model/memory/coefficients.py", "memory coefficients"),
    ("atlas_model/memory/step_bound.py", "memory coefficients"),
    ("atlas_model/memory/", "memory buffers"),
    ("atlas_model/query_projection.py", "memory buffers"),
    ("atlas_model/neural_memory.py", "memory buffers"),
    ("atlas_model/attention.py", "attention"),
    ("atlas_model/context_attention.py", "attention"),
    ("atlas_model/block.py", "feed-forward"),
    ("atlas_model/model.py AtlasModel.logits", "logits"),
    ("atlas_model/model.py", "model, the rest"),
    ("atlas_model/telemetry.py", "memory samples"),
    ("engine/device/state_pool.py", "state read and write"),
    ("engine/sampling/sampler.py", "sampling"),
    ("engine/", "core"),
)
"""How a frame's place begins, and the part that it belongs to; the first that fits. A frame that none fits, such as
torch's own or a helper of several parts, belongs to whoever called it."""

OTHER = "other"
_NUM_FUNCTIONS = 20


@dataclass(frozen=True, slots=True)
class Profile:
    """Shares of the time by part and by function, the largest first; a function is the innermost one of ours.

    seconds: of a step, while nobody looks. slowdown: how much longer a step takes while somebody does.
    """

    name: str
    batch_size: int
    seconds: float
    slowdown: float
    num_samples: int
    parts: dict[str, float]
    functions: dict[str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--batch-sizes", type=parse_counts, default="1,32", help="rows of a decode step")
    parser.add_argument(
        "--document-tokens", type=parse_length, default=65536, help="of the documents that are prefilled"
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="of looking, for each profile; half of it without")
    report.add_json_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    checkpoint = open_model(arguments)
    profiles = [measure(checkpoint, "prefill", 1, arguments)]
    profiles += [measure(checkpoint, "decode", batch_size, arguments) for batch_size in arguments.batch_sizes]
    _print(profiles)
    document: report.Json = {
        **report.header("profile"),
        **model_header(checkpoint, arguments),
        "profiles": [asdict(each) for each in profiles],
    }
    report.publish(document, {}, arguments.json)


def measure(checkpoint: Checkpoint, name: str, batch_size: int, arguments: argparse.Namespace) -> Profile:
    """One kind of step: `prefill`, pieces of one document after the other, or `decode`."""
    readers, writers = (batch_size, 0) if name == "prefill" else (0, batch_size)
    driver = CoreDriver(checkpoint, engine_settings(arguments), readers, writers, arguments.document_tokens)
    before = driver.run(arguments.seconds / 4)
    with StackSamples() as samples:
        looked_at = driver.run(arguments.seconds)
    after = driver.run(arguments.seconds / 4)
    seconds = (before.seconds + after.seconds) / (before.num_steps + after.num_steps)
    return Profile(
        name=name,
        batch_size=batch_size,
        seconds=seconds,
        slowdown=looked_at.seconds / looked_at.num_steps / seconds,
        num_samples=samples.num_samples,
        parts=samples.shares(part_of),
        functions=dict(islice(samples.shares(function_of).items(), _NUM_FUNCTIONS)),
    )


def part_of(stack: Sequence[Frame]) -> str:
    """The part of the innermost frame that belongs to one."""
    parts = (part for frame in stack for beginning, part in PARTS if place(frame, report.ROOT).startswith(beginning))
    return next(parts, OTHER)


def function_of(stack: Sequence[Frame]) -> str:
    """The innermost frame that is ours."""
    places = (place(frame, report.ROOT) for frame in stack)
    return next((each for each in places if each.startswith(("atlas_model/", "engine/"))), OTHER)


def _print(profiles: Sequence[Profile]) -> None:
    """One column for each profile, in milliseconds of a step and as a share; then the three biggest."""
    parts = list(dict.fromkeys([*(part for _, part in PARTS), OTHER]))
    names = [f"{each.name} {each.batch_size}" for each in profiles]
    print(f"{'':<22}" + "".join(f"{name:>20}" for name in names))
    for part in parts:
        shares = [each.parts.get(part, 0.0) for each in profiles]
        cells = (
            f"{1e3 * share * each.seconds:>11.3f} ms {share:>5.1%}"
            for share, each in zip(shares, profiles, strict=True)
        )
        print(f"{part:<22}" + "".join(cells))
    print(f"{'whole step':<22}" + "".join(f"{1e3 * each.seconds:>11.3f} ms  100%" for each in profiles))
    for name, each in zip(names, profiles, strict=True):
        biggest = ", ".join(f"{part} {share:.0%}" for part, share in islice(each.parts.items(), 3))
        print(f"{name}: {biggest}; {each.num_samples:,} looks, which make a step {each.slowdown:.2f} x as long")

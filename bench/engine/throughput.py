"""`python -m bench throughput`: tokens a second of the engine alone: scheduler, model and sampler, no HTTP. Inside it.

Three workloads at every batch size: `prefill`, as many documents read at once; `decode`, as many answers written; and
`mixed`, the answers beside one document. Tokens are drawn, with the sampling parameters' defaults. The model's share is
how often another thread, that looks at the stack, finds it in `atlas_model`: the rest is the engine's.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass

from bench import report
from bench.engine.core_driver import CoreDriver
from bench.engine.models import add_model_arguments, engine_settings, model_header, open_model
from bench.stack_samples import StackSamples, is_within
from bench.workload import parse_counts, parse_length


@dataclass(frozen=True, slots=True)
class Throughput:
    """step_seconds: a mean. model_share: of the time, inside the model."""

    workload: str
    batch_size: int
    prompt_tokens_per_second: float
    generated_tokens_per_second: float
    step_seconds: float
    num_steps: int
    model_share: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--batch-sizes", type=parse_counts, default="1,8,32", help="sequences at once")
    parser.add_argument("--document-tokens", type=parse_length, default="64k", help="of the documents that are read")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each workload; as long again for its share")
    report.add_json_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    checkpoint = open_model(arguments)
    print(f"{'':<14} {'prompt tokens/s':>16} {'answer tokens/s':>16} {'ms a step':>10} {'model':>6}")
    rows = []
    for batch_size in arguments.batch_sizes:
        for workload, readers, writers in (
            ("prefill", batch_size, 0),
            ("decode", 0, batch_size),
            ("mixed", 1, batch_size),
        ):
            driver = CoreDriver(checkpoint, engine_settings(arguments), readers, writers, arguments.document_tokens)
            rows.append(measure(driver, workload, batch_size, arguments.seconds))
            print(
                f"{workload:<8}{batch_size:>6} {rows[-1].prompt_tokens_per_second:>16,.0f}"
                f" {rows[-1].generated_tokens_per_second:>16,.0f} {1e3 * rows[-1].step_seconds:>10.2f}"
                f" {rows[-1].model_share:>6.0%}",
                flush=True,
            )
    document: report.Json = {
        **report.header("throughput"),
        **model_header(checkpoint, arguments),
        "throughput": [asdict(each) for each in rows],
    }
    report.publish(document, {}, arguments.json)


def measure(driver: CoreDriver, workload: str, batch_size: int, seconds: float) -> Throughput:
    driver.run(0.1 * seconds)
    work = driver.run(seconds)
    with StackSamples() as samples:
        driver.run(seconds)
    shares = samples.shares(lambda stack: "model" if is_within(stack, report.ROOT / "atlas_model") else "engine")
    return Throughput(
        workload=workload,
        batch_size=batch_size,
        prompt_tokens_per_second=work.num_prompt_tokens / work.seconds,
        generated_tokens_per_second=work.num_generated_tokens / work.seconds,
        step_seconds=work.seconds / work.num_steps,
        num_steps=work.num_steps,
        model_share=shares.get("model", 0.0),
    )

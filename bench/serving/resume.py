"""`python -m bench resume`: going on with a session against reading the same text again, in seconds to the first token.

The device still has the state of the last turn in its slot; the host has a copy, and the slot was used for something
else; a store has the snapshot, and the process nothing. Reading again is a stateless request with the whole text in its
prompt. All through HTTP and in turns; the server itself says which tier a turn went on from, and in what time the
session was ready.
"""

from __future__ import annotations

import argparse
import asyncio
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from io import BytesIO
from statistics import median

from bench import report
from bench.plot import draw_resume
from bench.redis_process import redis_at
from bench.server_process import bench_server
from bench.serving.load_workload import Kind, Task
from bench.serving.runner import Runner
from bench.serving.server_metrics import resume_seconds, scrape
from bench.summary import describe
from bench.workload import open_prompts, parse_counts
from clients import AsyncClient

QUESTION_NUM_TOKENS = 8
PREFILL = "prefill"
# One slot, so that another request takes a session's away.
ONE_SLOT = {"ATLAS_MAX_NUM_SEQUENCES": "1", "ATLAS_LOG_LEVEL": "warning"}
NO_COPIES = {**ONE_SLOT, "ATLAS_HOST_CACHE_BYTES": "0"}


@dataclass(frozen=True, slots=True)
class Way:
    """One way to a first token. tier: the one that the server must name; None reads the text again.
    server: the number of the server to ask. takes_the_slot: another request is sent first, which needs the only slot.
    """

    name: str
    tier: str | None
    server: int
    takes_the_slot: bool = False


WAYS = (
    Way("host", "host", 0, takes_the_slot=True),
    Way("device", "device", 0),
    Way("store local", "store", 1),
    Way("store redis", "store", 2),
    Way(PREFILL, None, 0),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """ready_seconds: what the server counts until the session is ready; None for reading again."""

    num_tokens: int
    way: str
    ttft_seconds: float
    ready_seconds: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lengths",
        type=parse_counts,
        default="1k,10k,100k",
        help="tokens that were read before; 1m takes minutes more",
    )
    parser.add_argument("--rounds", type=int, default=10, help="turns of each tier, after a first one")
    parser.add_argument("--prefill-rounds", type=int, default=3, help="in how many of them the text is read again")
    parser.add_argument("--redis", metavar="URL", help="a Redis; default: one of our own, without persistence")
    parser.add_argument("--seed", type=int, default=0)
    report.add_model_argument(parser)
    report.add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    with ExitStack() as stack:
        redis_url = stack.enter_context(redis_at(arguments.redis))
        servers = [
            stack.enter_context(bench_server(None, arguments.model, store, settings))
            for store, settings in ((None, ONE_SLOT), (None, NO_COPIES), (redis_url, NO_COPIES))
        ]
        samples = asyncio.run(_measure([server.base_url for server in servers], arguments))
    rows = summarise_resume(samples)
    for row in rows:
        ttft = row["ttft_seconds"]
        assert isinstance(ttft, dict)
        print(
            f"{row['num_tokens']:>9,} tokens  {row['way']:<12} {1e3 * ttft['median']:10.2f} ms to the first token, "
            f"reading again takes {row['prefill_ratio']:.1f} x"
        )
    if arguments.plot is not None:
        draw_resume(rows, arguments.plot)
    document = {**report.header("resume"), "model": arguments.model.name, "results": rows}
    report.publish(document, {"samples": [asdict(sample) for sample in samples]}, arguments.json)


def summarise_resume(samples: Sequence[Sample]) -> list[report.Json]:
    """By length and way; `prefill_ratio` is the median of reading again over the way's own."""
    groups: dict[tuple[int, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.num_tokens, sample.way), []).append(sample)
    rows: list[report.Json] = []
    for (num_tokens, way), group in groups.items():
        again = median(sample.ttft_seconds for sample in groups[num_tokens, PREFILL])
        ttft = describe([sample.ttft_seconds for sample in group])
        ready = describe([sample.ready_seconds for sample in group if sample.ready_seconds is not None])
        assert ttft is not None
        rows.append(
            {
                "num_tokens": num_tokens,
                "way": way,
                "ttft_seconds": asdict(ttft),
                "ready_seconds": None if ready is None else asdict(ready),
                "prefill_ratio": again / ttft.median,
            }
        )
    return rows


async def _measure(urls: Sequence[str], arguments: argparse.Namespace) -> list[Sample]:
    text_of = open_prompts(arguments.model, None, arguments.seed)
    samples = []
    for length in arguments.lengths:
        text, session = text_of(length, f"document/{length}"), f"resume-{uuid.uuid4().hex[:8]}"
        await _prepare(urls, session, text)
        for number in range(-1, arguments.rounds):
            question = text_of(QUESTION_NUM_TOKENS, f"question/{number}")
            for way in WAYS:
                if way.tier is None and number >= arguments.prefill_rounds:
                    continue
                task = Task(number, Kind.RESUME, session, question)
                if way.tier is None:
                    task = Task(number, Kind.CHAT, None, f"{text}\n\n{question}")
                sample = await _try(urls[way.server], way, task, length)
                if number >= 0:
                    samples.append(sample)
        for url in urls:
            async with AsyncClient(url) as client:
                await client.delete_session(session)
    return samples


async def _prepare(urls: Sequence[str], session: str, text: str) -> None:
    """The first server reads the text, the others get what it has learned."""
    first, *others = urls
    async with AsyncClient(first) as client:
        await client.ingest(session, BytesIO(text.encode()))
        exported = BytesIO()
        await client.export_session(session, exported)
    for url in others:
        exported.seek(0)
        async with AsyncClient(url) as client:
            await client.import_session(exported, session)


async def _try(url: str, way: Way, task: Task, length: int) -> Sample:
    """One request on a connection of its own. Raises SystemExit when it fails, or went on from somewhere else."""
    async with AsyncClient(url) as client:
        runner = Runner(client, {"max_tokens": 8, "ignore_eos": True, "temperature": 0.0})
        if way.takes_the_slot:
            await runner.send(Task(0, Kind.CHAT, None, task.text))
        before = scrape(url, None)
        ticks = await runner.send(task)
        after = scrape(url, None)
    if ticks.ttft_seconds is None:
        raise SystemExit(f"bench resume: {ticks.error}")
    if way.tier is None:
        return Sample(length, way.name, ticks.ttft_seconds, None)
    assert before is not None
    assert after is not None
    ready = resume_seconds(before, after, way.tier)
    if ready is None:
        raise SystemExit(f"bench resume: the server did not go on from the {way.tier}")
    return Sample(length, way.name, ticks.ttft_seconds, ready.mean)

"""`python -m bench beside`: what a long document that is being read costs those who read answers at the same time.

The same chats run alone and beside an upload, in turns on one server. The bound on the gaps between tokens is the
server's `--max-added-itl-seconds`; what it costs the document is told too.
"""

from __future__ import annotations

import argparse
import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from io import BytesIO

from bench import report
from bench.server_process import bench_server
from bench.serving.load_workload import Kind, Task
from bench.serving.runner import Runner
from bench.serving.server_metrics import scrape
from bench.serving.ticks import RequestTicks
from bench.summary import describe, percentile
from bench.workload import open_prompts, parse_length
from clients import ApiError, AsyncClient

# Of the upload, before the chats beside it begin.
WARM_UP_SECONDS = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--chats", type=int, default=16, help="streams at once")
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens per answer; answers always have so many")
    parser.add_argument("--document-tokens", type=parse_length, default="1m", help="the document's length")
    parser.add_argument("--rounds", type=int, default=3, help="how often the chats run alone and beside the document")
    parser.add_argument("--seed", type=int, default=0)
    report.add_server_arguments(parser)
    report.add_json_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    text_of = open_prompts(arguments.model, None, arguments.seed)
    document = text_of(arguments.document_tokens, "document").encode()
    prompts = [text_of(32, f"prompt/{number}") for number in range(arguments.chats)]
    with bench_server(arguments.base_url, arguments.model, None) as server:
        alone, beside, rates = asyncio.run(_measure(server.base_url, arguments, document, prompts))
    median_alone, p99_beside = percentile(alone, 50), percentile(beside, 99)
    for name, gaps in (("alone", alone), ("beside", beside)):
        median, p99 = 1e3 * percentile(gaps, 50), 1e3 * percentile(gaps, 99)
        print(f"{name:<8} median {median:.1f} ms, p99 {p99:.1f} ms, n={len(gaps)}")
    print(f"p99 beside the document: {p99_beside / median_alone:.2f} x the median alone")
    print(f"document: {percentile(rates, 50):,.0f} tokens a second meanwhile")
    figures = {"alone": describe(alone), "beside": describe(beside)}
    result: report.Json = {
        **report.header("beside"),
        "model": arguments.model.name,
        "num_chats": arguments.chats,
        "max_tokens": arguments.max_tokens,
        "document_num_tokens": arguments.document_tokens,
        "itl_seconds": {name: None if each is None else asdict(each) for name, each in figures.items()},
        "ratio": p99_beside / median_alone,
        "document_tokens_per_second": percentile(rates, 50),
    }
    report.publish(result, {"gaps_alone": alone, "gaps_beside": beside}, arguments.json)


async def _measure(
    base_url: str, arguments: argparse.Namespace, document: bytes, prompts: list[str]
) -> tuple[list[float], list[float], list[float]]:
    """The gaps alone and beside the document, and the document's tokens a second in each round."""
    alone: list[float] = []
    beside: list[float] = []
    rates: list[float] = []
    async with AsyncClient(base_url, arguments.api_key) as client:
        runner = Runner(client, {"max_tokens": arguments.max_tokens, "ignore_eos": True})

        async def chat() -> list[RequestTicks]:
            records = await runner.closed_loop([[Task(0, Kind.CHAT, None, prompt)] for prompt in prompts])
            failed = next((each.error for each in records if each.error is not None), None)
            if failed is not None:
                raise SystemExit(f"bench beside: {failed}")
            return records

        def num_read() -> float:
            samples = scrape(base_url, arguments.api_key)
            if samples is None:
                raise SystemExit("bench beside: the server has no /metrics")
            return samples["atlas_prompt_tokens_total"]

        await chat()
        for _ in range(arguments.rounds):
            alone += _gaps(await chat())
            async with _reading(client, document):
                await asyncio.sleep(WARM_UP_SECONDS)
                before, began = num_read(), time.monotonic()
                records = await chat()
                num_of_document = num_read() - before - sum(each.num_prompt_tokens for each in records)
                rates.append(num_of_document / (time.monotonic() - began))
            beside += _gaps(records)
    return alone, beside, rates


def _gaps(records: list[RequestTicks]) -> list[float]:
    return [gap for ticks in records for gap in ticks.itl_seconds]


@asynccontextmanager
async def _reading(client: AsyncClient, document: bytes) -> AsyncIterator[None]:
    """While the block runs, a new session reads the document. Raises SystemExit when its end comes first."""
    session = f"beside-{uuid.uuid4().hex[:8]}"
    upload = asyncio.create_task(client.ingest(session, BytesIO(document)))
    try:
        yield
        if upload.done():
            await upload
            raise SystemExit("bench beside: the document was read before the answers were written: --document-tokens")
    finally:
        upload.cancel()
        with suppress(asyncio.CancelledError):
            await upload
        with suppress(ApiError):
            # It was never made if nothing of it was committed.
            await client.delete_session(session)

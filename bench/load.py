"""`python -m bench load`: latency and throughput under a number of concurrent streams.

Closed loop: each stream sends its next request when the last one has ended. A stream is a session that goes on, or with
`--stateless` a series of independent requests. Ticks are recorded raw; every figure is computed from them afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import time
import uuid
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

from atlas_model.text import Tokenizer, find_tokenizer, load_tokenizer
from atlas_model.training.prose import ProseSource
from bench import report
from bench.plot import draw_latencies
from bench.server_process import bench_server
from bench.summary import describe
from bench.ticks import LATENCIES, Limits, RequestTicks, latencies, summarise_load
from bench.workload import open_prose, parse_length, prompt_of
from clients import ApiError, AsyncClient, ClientError
from clients.protocol import ChatOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--concurrency", type=int, default=8, help="streams at once")
    parser.add_argument("--requests", type=int, default=4, help="requests of each stream")
    parser.add_argument("--warm-up", type=int, default=1, help="requests of each stream before those, not recorded")
    parser.add_argument("--prompt-tokens", default="128", help="new tokens per request (1k = 1,000)")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens per answer; answers always have so many")
    parser.add_argument("--document-tokens", default="0", help="what each session has read before the run")
    parser.add_argument("--stateless", action="store_true", help="no sessions")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="books for the prompts; default: generated prose")
    parser.add_argument("--store", metavar="URL", help="the store of our own server; default: a temporary local one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--goodput", nargs="*", default=[], metavar="NAME=SECONDS", help="limits for ttft, tpot, e2e, like ttft=0.5"
    )
    report.add_server_arguments(parser)
    report.add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    limits = _parse_limits(arguments.goodput)
    document_num_tokens = 0 if arguments.document_tokens == "0" else parse_length(arguments.document_tokens)
    if arguments.stateless and document_num_tokens:
        raise SystemExit("bench load: --document-tokens needs sessions")
    load = Load(
        load_tokenizer(find_tokenizer(arguments.model)),
        open_prose(arguments.corpus),
        prompt_num_tokens=parse_length(arguments.prompt_tokens),
        document_num_tokens=document_num_tokens,
        max_tokens=arguments.max_tokens,
        with_sessions=not arguments.stateless,
        seed=arguments.seed,
    )
    with bench_server(arguments.base_url, arguments.model, arguments.store) as server:
        records = asyncio.run(
            load.run(server.base_url, arguments.api_key, arguments.concurrency, arguments.requests, arguments.warm_up)
        )
    if all(ticks.error is not None for ticks in records):
        raise SystemExit(f"bench load: every request failed, the first with {records[0].error}")
    for name, values in latencies(records).items():
        figures = describe(values)
        if figures is not None:
            print(
                f"{name:>5}  mean {figures.mean:.4f}  median {figures.median:.4f}  std {figures.std:.4f}  "
                f"p90 {figures.p90:.4f}  p95 {figures.p95:.4f}  p99 {figures.p99:.4f} s  n={figures.n}"
            )
    if arguments.plot is not None:
        draw_latencies(latencies(records), arguments.plot)
    document = {
        **report.header("load"),
        "model": arguments.model.name,
        "concurrency": arguments.concurrency,
        "with_sessions": not arguments.stateless,
        "prompt_num_tokens": load.prompt_num_tokens,
        "document_num_tokens": document_num_tokens,
        "max_tokens": arguments.max_tokens,
        **summarise_load(records, limits),
    }
    report.publish(document, {"ticks": [asdict(ticks) for ticks in records]}, arguments.json)


class Load:
    """The workload: what each stream sends. The same seed sends the same texts."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prose: ProseSource,
        *,
        prompt_num_tokens: int,
        document_num_tokens: int,
        max_tokens: int,
        with_sessions: bool,
        seed: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._prose = prose
        self.prompt_num_tokens = prompt_num_tokens
        self._document_num_tokens = document_num_tokens
        self._max_tokens = max_tokens
        self._with_sessions = with_sessions
        self._seed = seed
        self._run_id = uuid.uuid4().hex[:8]

    async def run(
        self, base_url: str, api_key: str | None, concurrency: int, num_requests: int, num_warm_up: int
    ) -> list[RequestTicks]:
        """Records of all streams, by stream. Sessions are made before and deleted after."""
        async with AsyncClient(base_url, api_key) as client:
            streams = range(concurrency)
            numbers = range(-num_warm_up, num_requests)
            prompts = {
                (stream, number): self._text(self.prompt_num_tokens, f"{stream}/{number}")
                for stream in streams
                for number in numbers
            }
            if self._document_num_tokens:
                await asyncio.gather(*(self._read_document(client, stream) for stream in streams))
            for recorded in (numbers[:num_warm_up], numbers[num_warm_up:]):
                began = time.monotonic()
                groups = await asyncio.gather(
                    *(self._run_stream(client, stream, recorded, prompts, began) for stream in streams)
                )
            if self._with_sessions:
                await asyncio.gather(*(self._forget(client, stream) for stream in streams))
        return [ticks for group in groups for ticks in group]

    async def _read_document(self, client: AsyncClient, stream: int) -> None:
        text = self._text(self._document_num_tokens, f"document/{stream}")
        await client.ingest(self._session_of(stream), BytesIO(text.encode()))

    async def _run_stream(
        self, client: AsyncClient, stream: int, numbers: range, prompts: dict[tuple[int, int], str], began: float
    ) -> list[RequestTicks]:
        return [await self._send(client, stream, number, prompts[stream, number], began) for number in numbers]

    async def _forget(self, client: AsyncClient, stream: int) -> None:
        """A stream whose every request failed has no session."""
        try:
            await client.delete_session(self._session_of(stream))
        except ApiError as error:
            if error.code != "session_not_found":
                raise

    async def _send(self, client: AsyncClient, stream: int, number: int, prompt: str, began: float) -> RequestTicks:
        options: ChatOptions = {"max_tokens": self._max_tokens, "ignore_eos": True}
        if self._with_sessions:
            options["session_id"] = self._session_of(stream)
            options["history"] = "new"
        chunk_seconds: list[float] = []
        num_prompt_tokens = num_completion_tokens = 0
        error: str | None = None
        sent_seconds = time.monotonic() - began
        end_seconds = sent_seconds
        try:
            async for delta in client.stream_chat(prompt, **options):
                now = time.monotonic() - began
                if delta.text:
                    chunk_seconds.append(now)
                if delta.finish_reason is not None:
                    end_seconds = now
                if delta.usage is not None:
                    num_prompt_tokens = delta.usage.num_prompt_tokens
                    num_completion_tokens = delta.usage.num_completion_tokens
            if not chunk_seconds:
                error = "an answer without text"
        except ClientError as failure:
            end_seconds = time.monotonic() - began
            error = str(failure)
        return RequestTicks(
            stream=stream,
            number=number,
            sent_seconds=sent_seconds,
            chunk_seconds=() if error else tuple(chunk_seconds),
            end_seconds=end_seconds,
            num_prompt_tokens=num_prompt_tokens,
            num_completion_tokens=num_completion_tokens,
            error=error,
        )

    def _text(self, num_tokens: int, name: str) -> str:
        return prompt_of(self._tokenizer, self._prose, num_tokens, f"{self._seed}/{name}")

    def _session_of(self, stream: int) -> str:
        return f"load-{self._run_id}-{stream}"


def _parse_limits(texts: list[str]) -> Limits:
    limits: Limits = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            limits[name] = float(value)
        except ValueError:
            name = ""
        if name not in LATENCIES:
            raise SystemExit(f"bench load: --goodput takes {', '.join(LATENCIES)} with seconds, like ttft=0.5: {text}")
    return limits

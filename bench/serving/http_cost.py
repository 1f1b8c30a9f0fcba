"""`python -m bench http_cost`: what HTTP costs the server's processor per token, beside what the engine costs.

Everything of HTTP runs in the server's main thread, whose processor time the kernel counts apart from the engine's; the
load generator is another process, counted nowhere, and does as little as it can. The same stateless answers are asked
for in turns as streams, where every token is an event, and whole, where nothing is sent before the end: what the engine
needs more with streams is what these take from it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from urllib.parse import urlsplit

from bench import report
from bench.process_times import ProcessTimes
from bench.server_process import HOST, bench_server
from bench.workload import open_prompts, parse_length

PIECE_NUM_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one round of answers, per token: processor seconds of HTTP and of everything else in the server. A step is one
    token of every answer."""

    http_seconds: float
    engine_seconds: float
    step_seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--concurrency", type=int, default=32, help="streaming clients at once")
    parser.add_argument("--max-tokens", type=int, default=256, help="tokens per answer")
    parser.add_argument("--prompt-tokens", type=int, default=16, help="tokens per prompt")
    parser.add_argument(
        "--rounds", type=int, default=5, help="turns of streams and of whole answers, after a first one"
    )
    parser.add_argument("--threads", type=parse_length, default=1, help="torch's threads in the server")
    report.add_model_argument(parser)
    report.add_json_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    text = open_prompts(arguments.model, None, 0)(arguments.prompt_tokens, "http")
    settings = {
        "ATLAS_LOG_LEVEL": "warning",
        "ATLAS_MAX_NUM_SEQUENCES": str(arguments.concurrency),
        "ATLAS_THREADS": str(arguments.threads),
    }
    with bench_server(None, arguments.model, "memory://", settings) as server:
        clients = _Clients(
            urlsplit(server.base_url).port or 0, server.pid, text, arguments.concurrency, arguments.max_tokens
        )
        streams, whole = asyncio.run(clients.measure(arguments.rounds))
    figures: report.Json = {
        "streams": asdict(_median(streams)),
        "whole": asdict(_median(whole)),
        "http_share": median(cost.http_seconds / cost.engine_seconds for cost in streams),
        "engine_ratio": median(
            stream.engine_seconds / alone.engine_seconds for stream, alone in zip(streams, whole, strict=True)
        ),
        "step_ratio": median(
            stream.step_seconds / alone.step_seconds for stream, alone in zip(streams, whole, strict=True)
        ),
    }
    for name, cost in (("streams", _median(streams)), ("whole", _median(whole))):
        print(
            f"{name:<8} HTTP {1e6 * cost.http_seconds:6.1f} us a token, engine {1e6 * cost.engine_seconds:7.1f} us, "
            f"step {1e3 * cost.step_seconds:.2f} ms"
        )
    print(
        f"HTTP is {figures['http_share']:.3f} of the engine, which takes {figures['engine_ratio']:.2f} x the processor "
        f"and {figures['step_ratio']:.2f} x the time for a step with streams"
    )
    document: report.Json = {
        **report.header("http_cost"),
        "model": arguments.model.name,
        "concurrency": arguments.concurrency,
        "max_tokens": arguments.max_tokens,
        "num_rounds": arguments.rounds,
        "num_threads": arguments.threads,
        **figures,
    }
    rounds = {"streams": [asdict(cost) for cost in streams], "whole": [asdict(cost) for cost in whole]}
    report.publish(document, {"rounds": rounds}, arguments.json)


class _Clients:
    """So many clients that ask at once, of the server that is process `pid`."""

    def __init__(self, port: int, pid: int, text: str, concurrency: int, max_tokens: int) -> None:
        self._port = port
        self._pid = pid
        self._text = text
        self._concurrency = concurrency
        self._max_tokens = max_tokens

    async def measure(self, num_rounds: int) -> tuple[list[Cost], list[Cost]]:
        """With streams and with whole answers, round by round; the first round of each is not counted."""
        rounds = [(await self._round(stream=True), await self._round(stream=False)) for _ in range(num_rounds + 1)]
        return [streams for streams, _ in rounds[1:]], [whole for _, whole in rounds[1:]]

    async def _round(self, *, stream: bool) -> Cost:
        began, before = time.monotonic(), ProcessTimes.of(self._pid)
        await asyncio.gather(*(self._ask(stream=stream) for _ in range(self._concurrency)))
        spent, seconds = ProcessTimes.of(self._pid) - before, time.monotonic() - began
        num_tokens = self._concurrency * self._max_tokens
        return Cost(spent.main_seconds / num_tokens, spent.other_seconds / num_tokens, seconds / self._max_tokens)

    async def _ask(self, *, stream: bool) -> None:
        """On a bare socket. Raises SystemExit when the answer is not whole."""
        body = json.dumps(
            {
                "messages": [{"role": "user", "content": self._text}],
                "max_tokens": self._max_tokens,
                "ignore_eos": True,
                "stream": stream,
            }
        ).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        reader, writer = await asyncio.open_connection(HOST, self._port)
        writer.write(head.encode() + body)
        tail = b""
        while piece := await reader.read(PIECE_NUM_BYTES):
            tail = (tail + piece)[-PIECE_NUM_BYTES:]
        writer.close()
        if b'"finish_reason":"length"' not in tail:
            raise SystemExit(f"bench http_cost: {tail.decode(errors='replace')}")


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(*(median(values) for values in zip(*(asdict(cost).values() for cost in costs), strict=True)))

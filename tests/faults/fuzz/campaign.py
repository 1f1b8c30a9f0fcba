"""Sends cases to a server from several processes, and says what is wrong with its answers.

Each process has several connections at once. A whole request goes over a connection that is kept; bytes that are none
go over one of their own, which the client ends, and which the server must close.
"""

import asyncio
import base64
import multiprocessing
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Self

from tests.faults.fuzz.answers import MAX_LINE_NUM_BYTES, Answer, GarbledError, complaint, read_answer
from tests.faults.fuzz.cases import Case, Cases

NUM_CONNECTIONS = 8
DEADLINE_SECONDS = 90.0
MAX_NUM_FINDINGS = 20
MAX_SHOWN_NUM_BYTES = 6000


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and what cases for it are drawn from."""

    port: int
    document: Mapping[str, Any]
    snapshot: bytes
    seed: int


@dataclass(slots=True)
class Report:
    """num_answers: by kind of case and status; 0 stands for a connection that was closed without an answer."""

    num_answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0

    def __or__(self, other: Self) -> "Report":
        return Report(
            self.num_answers + other.num_answers,
            self.findings + other.findings,
            max(self.slowest_seconds, other.slowest_seconds),
        )

    @property
    def num_by_status(self) -> dict[int, int]:
        statuses: Counter[int] = Counter()
        for (_, status), number in self.num_answers.items():
            statuses[status] += number
        return dict(sorted(statuses.items()))


def run_campaign(target: Target, numbers: range, num_processes: int = 2) -> Report:
    """Sends the cases of these numbers. What is found is no exception, so that one finding hides no other."""
    shares = [numbers[place::num_processes] for place in range(num_processes)]
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn")) as pool:
        return reduce(Report.__or__, pool.map(_run, [target] * num_processes, shares))


def _run(target: Target, numbers: Sequence[int]) -> Report:
    return asyncio.run(Campaign(target).run(numbers))


class Campaign:
    """One process' part."""

    def __init__(self, target: Target) -> None:
        self._port = target.port
        self._seed = target.seed
        self._cases = Cases(target.document, target.seed, target.snapshot)
        self._report = Report()

    async def run(self, numbers: Sequence[int]) -> Report:
        waiting = iter(numbers)
        await asyncio.gather(*(self._run_one_by_one(waiting) for _ in range(NUM_CONNECTIONS)))
        return self._report

    async def _run_one_by_one(self, numbers: Any) -> None:
        kept = _Connection(self._port)
        try:
            for number in numbers:
                if len(self._report.findings) >= MAX_NUM_FINDINGS:
                    return
                await self._try(self._cases.case(number), kept)
        finally:
            await kept.close()

    async def _try(self, case: Case, kept: "_Connection") -> None:
        started = time.monotonic()
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                answers = [await kept.ask(case)] if case.is_whole else await _ask_alone(self._port, case)
            complaints = [complaint(answer, case.is_whole) for answer in answers]
        except TimeoutError:
            answers, complaints = [], [f"no answer in {DEADLINE_SECONDS:g} s"]
            await kept.close()
        except (GarbledError, ConnectionError, ValueError) as error:
            answers, complaints = [], [f"{type(error).__name__}: {error}"]
            await kept.close()
        self._report.slowest_seconds = max(self._report.slowest_seconds, time.monotonic() - started)
        for answer in answers:
            self._report.num_answers[case.kind, answer.status] += 1
            self._cases.ids.learn(answer.value)
        if not answers:
            self._report.num_answers[case.kind, 0] += 1
        self._report.findings += [self._told(case, wrong) for wrong in complaints if wrong is not None]

    def _told(self, case: Case, wrong: str) -> str:
        raw = b"".join(case.pieces)
        sent = base64.b64encode(raw[:MAX_SHOWN_NUM_BYTES]).decode()
        again = f"python -m tests.faults.fuzz --seed {self._seed} --only {case.number}"
        return f"{wrong} · {case.kind} · {again} · sent (base64, {len(raw)} bytes): {sent}"


class _Connection:
    """A connection that is kept as long as the server keeps it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, case: Case) -> Answer:
        """Raises GarbledError, also for a connection that ends without an answer, and ConnectionError."""
        is_kept = self._streams is not None
        answer = await self._ask_once(case)
        if answer is None and is_kept:
            # The server had closed the connection before, as it may.
            answer = await self._ask_once(case)
        if answer is None:
            raise GarbledError("closed without an answer")
        if answer.headers.get("connection") == "close":
            await self.close()
        return answer

    async def _ask_once(self, case: Case) -> Answer | None:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=MAX_LINE_NUM_BYTES)
        reader, writer = self._streams
        try:
            await _send(writer, case.pieces)
            answer = await read_answer(reader, case.has_body)
        except ConnectionError:
            answer = None
        if answer is None:
            await self.close()
        return answer

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            with suppress(ConnectionError):
                await self._streams[1].wait_closed()
            self._streams = None


async def _ask_alone(port: int, case: Case) -> list[Answer]:
    """All that the server says to bytes of any kind, up to where it hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=MAX_LINE_NUM_BYTES)
    answers = []
    try:
        with suppress(ConnectionError):
            await _send(writer, case.pieces)
            writer.write_eof()
        with suppress(ConnectionError):
            while (answer := await read_answer(reader, not case.pieces[0].startswith(b"HEAD"))) is not None:
                answers.append(answer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    return answers


async def _send(writer: asyncio.StreamWriter, pieces: Sequence[bytes]) -> None:
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        if len(pieces) > 1:
            await asyncio.sleep(0)

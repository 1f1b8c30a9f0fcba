"""Sends the tasks of a workload and records ticks: closed loop, each stream waiting for its answers, or open loop, each
task at its moment, whatever became of the others.

Promises: a session has one writing turn at a time, as a conversation has; a request that fails is a record like the
others and ends nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from io import BytesIO

from bench.serving.load_workload import Kind, Task
from bench.serving.ticks import RequestTicks
from clients import ApiError, AsyncClient, ClientError
from clients.protocol import ChatOptions

REFUSALS = (429, 503)
# How long a stream rests whose request was refused.
REFUSED_SECONDS = 1.0


@dataclass(slots=True)
class _Answer:
    """What is known of a request's answer so far; seconds are of the monotonic clock."""

    chunk_seconds: list[float] = field(default_factory=list)
    end_seconds: float | None = None
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    num_cached_tokens: int = 0


class Runner:
    """`options` go with every turn."""

    def __init__(self, client: AsyncClient, options: ChatOptions) -> None:
        self._client = client
        self._options = options
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def closed_loop(self, streams: Sequence[Sequence[Task]]) -> list[RequestTicks]:
        """Records of all streams, by stream."""
        began = time.monotonic()
        groups = await asyncio.gather(*(self._run_stream(number, tasks, began) for number, tasks in enumerate(streams)))
        return [ticks for group in groups for ticks in group]

    async def open_loop(self, tasks: Sequence[Task]) -> list[RequestTicks]:
        """Records in the order of the tasks, all of which have a moment."""
        began = time.monotonic()
        return await asyncio.gather(*(self._send_when_due(task, began) for task in tasks))

    async def send(self, task: Task, stream: int = 0, began: float | None = None) -> RequestTicks:
        """The record's seconds count from `began`, of the monotonic clock; None is from when it is sent."""
        answer, error = _Answer(), None
        async with self._turn_of(task):
            sent = time.monotonic()
            began = sent if began is None else began
            try:
                await (self._ingest if task.kind is Kind.INGEST else self._chat)(task, answer)
            except ClientError as failure:
                error = failure
            end = time.monotonic() if answer.end_seconds is None or error is not None else answer.end_seconds
        reason = None if error is None else str(error)
        if reason is None and task.kind is not Kind.INGEST and not answer.chunk_seconds:
            reason = "an answer without text"
        return RequestTicks(
            stream=stream,
            number=task.number,
            sent_seconds=sent - began,
            chunk_seconds=() if reason else tuple(moment - began for moment in answer.chunk_seconds),
            end_seconds=end - began,
            num_prompt_tokens=answer.num_prompt_tokens,
            num_completion_tokens=answer.num_completion_tokens,
            error=reason,
            kind=task.kind,
            due_seconds=task.due_seconds,
            is_refused=isinstance(error, ApiError) and error.status in REFUSALS,
            num_cached_tokens=answer.num_cached_tokens,
        )

    async def _run_stream(self, stream: int, tasks: Sequence[Task], began: float) -> list[RequestTicks]:
        records = []
        for task in tasks:
            records.append(await self.send(task, stream, began))
            if records[-1].is_refused:
                await asyncio.sleep(REFUSED_SECONDS)
        return records

    async def _send_when_due(self, task: Task, began: float) -> RequestTicks:
        assert task.due_seconds is not None
        await asyncio.sleep(began + task.due_seconds - time.monotonic())
        return await self.send(task, 0, began)

    def _turn_of(self, task: Task) -> AbstractAsyncContextManager[object]:
        if task.session is None or task.kind is Kind.READ:
            return nullcontext()
        return self._locks[task.session]

    async def _ingest(self, task: Task, answer: _Answer) -> None:
        assert task.session is not None
        result = await self._client.ingest(task.session, BytesIO(task.text.encode()), patience_seconds=0.0)
        answer.num_prompt_tokens = result.num_tokens

    async def _chat(self, task: Task, answer: _Answer) -> None:
        options = self._options.copy()
        if task.session is not None:
            options |= {"session_id": task.session, "history": "new", "read_only": task.kind is Kind.READ}
        async for delta in self._client.stream_chat(task.text, **options):
            now = time.monotonic()
            if delta.text:
                answer.chunk_seconds.append(now)
            if delta.finish_reason is not None:
                answer.end_seconds = now
            if delta.usage is not None:
                answer.num_prompt_tokens = delta.usage.num_prompt_tokens
                answer.num_completion_tokens = delta.usage.num_completion_tokens
                answer.num_cached_tokens = delta.usage.num_cached_tokens

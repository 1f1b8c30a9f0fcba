"""The sessions of a load bench: made before the run, deleted after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from io import BytesIO

from bench.serving.load_workload import Kind, Task
from clients import ApiError, AsyncClient

# Sessions that are made or deleted at once.
NUM_AT_ONCE = 8


class LoadSessions:
    """Those that `tasks` name. Each reads a document of its own of `document_num_tokens` (0: none, its first turn makes
    it); those that wait to be resumed are forks of one."""

    def __init__(self, tasks: Sequence[Task], document_num_tokens: int, text_of: Callable[[int, str], str]) -> None:
        resumes = {task.session for task in tasks if task.session and task.kind is Kind.RESUME}
        self._resumes = sorted(resumes)
        self._others = sorted({task.session for task in tasks if task.session} - resumes)
        self._document_num_tokens = document_num_tokens
        self._text_of = text_of
        self._at_once = asyncio.Semaphore(NUM_AT_ONCE)

    @property
    def names(self) -> tuple[str, ...]:
        return (*self._resumes, *self._others)

    async def prepare(self, client: AsyncClient) -> None:
        if not self._document_num_tokens:
            return
        await asyncio.gather(*(self._read(client, session) for session in self._others))
        if self._resumes:
            first, *rest = self._resumes
            await self._read(client, first)
            await asyncio.gather(*(self._fork(client, first, session) for session in rest))

    async def forget(self, client: AsyncClient) -> None:
        await asyncio.gather(*(self._delete(client, session) for session in self.names))

    async def _read(self, client: AsyncClient, session: str) -> None:
        async with self._at_once:
            # Named without the run's own prefix, so that the same seed reads the same.
            text = self._text_of(self._document_num_tokens, f"document/{session.split('-', 2)[-1]}")
            await client.ingest(session, BytesIO(text.encode()))

    async def _fork(self, client: AsyncClient, source: str, session: str) -> None:
        async with self._at_once:
            await client.fork_session(source, session)

    async def _delete(self, client: AsyncClient, session: str) -> None:
        """A session whose every request failed was never made."""
        async with self._at_once:
            try:
                await client.delete_session(session)
            except ApiError as error:
                if error.code != "session_not_found":
                    raise

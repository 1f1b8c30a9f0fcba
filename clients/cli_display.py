"""How the `atlas` command shows quantities, versions, and the progress of long work (on standard error, only on a
terminal)."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from clients.messages import IngestProgress, IngestResult, SessionCommit
from clients.replay import ReplayProgress, ReplayResult
from clients.versions import SessionVersion


class _Display:
    """A progress bar: how much is done, tokens a second, time that remains."""

    def __init__(self, name: str, amount: ProgressColumn) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            amount,
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(name, total=None, rate="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def _show(self, completed: int, total: int, tokens_per_second: float) -> None:
        rate = f"{tokens_per_second:,.0f} tokens/s"
        self._progress.update(self._task, total=total, completed=completed, rate=rate)


_PIPE_WIDTH = 1000


class IngestDisplay(_Display):
    """Of committed bytes."""

    def __init__(self, name: str) -> None:
        super().__init__(name, DownloadColumn())

    def update(self, progress: IngestProgress) -> None:
        self._show(progress.num_committed_bytes, progress.num_total_bytes, progress.tokens_per_second)


class ReplayDisplay(_Display):
    """Of tokens fed again."""

    def __init__(self, name: str) -> None:
        super().__init__(name, MofNCompleteColumn())

    def update(self, progress: ReplayProgress) -> None:
        self._show(progress.num_tokens, progress.num_total_tokens, progress.tokens_per_second)


def table_console() -> Console:
    """For tables on standard output; nothing is cut in a pipe."""
    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def describe_ingest(name: str, result: IngestResult) -> str:
    return (
        f"{name}: {result.num_bytes:,} bytes, {result.num_tokens:,} tokens in {result.seconds:.1f} s; "
        f"{_describe_commit(result.session)}"
    )


def describe_replay(result: ReplayResult) -> str:
    return f"{result.num_tokens:,} tokens replayed in {result.seconds:.1f} s; {_describe_commit(result.session)}"


def versions_table(versions: Sequence[SessionVersion]) -> Table:
    table = Table("version", "name", "tokens read", "size", "made", "", box=None)
    for each in versions:
        made = "" if each.created is None else age(each.created)
        committed = "committed" if each.is_committed else ""
        size = describe_bytes(each.num_bytes)
        table.add_row(str(each.version), each.name or "", f"{each.position:,}", size, made, committed)
    return table


def describe_bytes(num_bytes: int) -> str:
    if num_bytes < 10_000:
        return f"{num_bytes:,} B"
    if num_bytes < 1_000_000:
        return f"{num_bytes / 1e3:.1f} kB"
    return f"{num_bytes / 1e6:.1f} MB"


def age(seconds_since_epoch: float) -> str:
    """How long ago that was, in the largest unit that fits."""
    seconds = max(0.0, time.time() - seconds_since_epoch)
    for unit, unit_seconds in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= unit_seconds:
            count = int(seconds // unit_seconds)
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return "just now"


def _describe_commit(session: SessionCommit) -> str:
    return (
        f"session {session.session_id} is at version {session.version}, token {session.position:,}"
        f" ({session.durability})"
    )

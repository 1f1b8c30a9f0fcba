"""Parts of one long check that cannot hold each other up: each in a process of its own, and within its own time.

A part that raises, dies or takes too long is reported, and the next one begins; a device that one part has left in a
bad state is another part's fresh one. What a part has noted is with the parent at once, so it outlives the part.
"""

from __future__ import annotations

import math
import multiprocessing
import pkgutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from bench.report import Json

# Imported once, in the process that the parts are forked from. It must not touch a device.
PRELOADED = ["bench.gpu.equality"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a part is told. `seconds`: it is ended after so long, counted from its start."""

    model: Path
    device: str
    batch_sizes: tuple[int, ...]
    num_rounds: int
    long_num_tokens: int
    seed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Check:
    """One figure and the most that it may be."""

    name: str
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        return self.value <= self.limit

    def to_json(self) -> Json:
        value = self.value if math.isfinite(self.value) else None
        return {"name": self.name, "value": value, "limit": self.limit, "holds": self.holds}


class Notes:
    """Where a part says what it has found."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def check(self, name: str, value: float, limit: float) -> None:
        self._connection.send(Check(name, float(value), limit))

    def figure(self, name: str, value: float | str) -> None:
        """A number that no limit is set to; of the same name the last one counts."""
        self._connection.send((name, value))


@dataclass(slots=True)
class PartReport:
    """`problem`: why the part has not passed, None when it has."""

    name: str
    problem: str | None = None
    seconds: float = 0.0
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, float | str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.problem is None

    def to_json(self) -> Json:
        return {
            "part": self.name,
            "passed": self.passed,
            "problem": self.problem,
            "seconds": round(self.seconds, 2),
            "checks": [check.to_json() for check in self.checks],
            "figures": self.figures,
        }

    def lines(self) -> Iterable[str]:
        yield f"{self.name:<12} {'ok' if self.problem is None else 'FAILED: ' + self.problem}   {self.seconds:.1f} s"
        for check in self.checks:
            verdict = "" if check.holds else "  TOO MUCH"
            yield f"  {check.name:<60} {check.value:.2e}  at most {check.limit:.0e}{verdict}"
        for name, value in self.figures.items():
            yield f"  {name:<60} {value if isinstance(value, str) else format(value, ',.6g')}"


def run_part(name: str, function: str, settings: Settings) -> PartReport:
    """Runs `function`, `package.module:name` of one that takes Settings and Notes, to its end or to that of its time.

    What it needs is imported there, so that a package that is missing is the part's problem and nobody else's.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    report, began = PartReport(name), time.monotonic()
    process = context.Process(target=_run_here, args=(function, settings, sender), daemon=True)
    process.start()
    sender.close()
    try:
        report.problem = _collect(report, receiver, settings.seconds)
    finally:
        process.kill()
        process.join()
        receiver.close()
    report.seconds = time.monotonic() - began
    if report.problem is None and not all(check.holds for check in report.checks):
        report.problem = "a figure is beyond its limit"
    return report


@dataclass(frozen=True, slots=True)
class _Ended:
    """The last thing that a part says: what was wrong, None for nothing."""

    problem: str | None


def _collect(report: PartReport, receiver: Connection, seconds: float) -> str | None:
    """Takes what the part says until it ends. Returns what was wrong with its end."""
    deadline = time.monotonic() + seconds
    while receiver.poll(max(0.0, deadline - time.monotonic())):
        try:
            said = receiver.recv()
        except EOFError:
            return "its process died"
        if isinstance(said, _Ended):
            return said.problem
        if isinstance(said, Check):
            report.checks.append(said)
        else:
            report.figures.update([said])
    return f"it was not done after {seconds:.1f} s"


def _run_here(function: str, settings: Settings, connection: Connection) -> None:
    problem = None
    try:
        pkgutil.resolve_name(function)(settings, Notes(connection))
    except Exception as error:
        # Boundary: whatever is wrong with one part, the others are to be run.
        problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    connection.send(_Ended(problem))

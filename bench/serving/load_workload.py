"""What a load bench sends: which kind of request, to which session, when. Pure: the same seed gives the same plan."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import count, islice


class Kind(StrEnum):
    """`chat`: the next turn of a session, or a stateless one. `ingest`: a session reads a document. `resume`: the first
    turn of a session since it was committed. `read`: a turn that leaves no trace in its session."""

    CHAT = "chat"
    INGEST = "ingest"
    RESUME = "resume"
    READ = "read"


# These go on with what must be there before.
KINDS_WITH_A_PAST = frozenset({Kind.RESUME, Kind.READ})
# The name of an open loop's one stream.
OPEN_STREAM = "open"


@dataclass(frozen=True, slots=True)
class Task:
    """One request. session: its id; None is a stateless one. due_seconds: since the run began; None is at once."""

    number: int
    kind: Kind
    session: str | None
    text: str
    due_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """shares: relative weights of the kinds.   prefix: of the sessions' ids.
    num_sessions: those that the streams share; None: each stream has one of its own; 0: stateless.
    zipf: shared session k is chosen in proportion to (k + 1)^-zipf, so that 0 is uniform.
    text_of: prose of so many tokens, the same for the same name.
    """

    shares: Mapping[Kind, float]
    num_sessions: int | None
    zipf: float
    prompt_num_tokens: int
    ingest_num_tokens: int
    seed: int
    prefix: str
    text_of: Callable[[int, str], str]

    def streams(self, concurrency: int, numbers: range) -> list[list[Task]]:
        """For a closed loop: each stream's tasks, so numbered."""
        return [list(islice(self._tasks(str(stream), numbers.start), len(numbers))) for stream in range(concurrency)]

    def arrivals(self, rate: float, duration_seconds: float) -> list[Task]:
        """For an open loop."""
        moments = poisson_arrivals(random.Random(f"{self.seed}/arrivals"), rate, duration_seconds)
        tasks = islice(self._tasks(OPEN_STREAM, 0), len(moments))
        return [replace(task, due_seconds=moment) for task, moment in zip(tasks, moments, strict=True)]

    def _tasks(self, stream: str, first: int) -> Iterator[Task]:
        """Without end."""
        rng = random.Random(f"{self.seed}/{stream}")
        kinds, weights = list(self.shares), list(self.shares.values())
        popularity = [(session + 1) ** -self.zipf for session in range(self.num_sessions or 0)]
        for number in count(first):
            (kind,) = rng.choices(kinds, weights)
            session: str | None = f"{self.prefix}-{stream}"
            if kind is Kind.RESUME:
                session = f"{self.prefix}-resume-{stream}-{number}"
            elif popularity:
                session = f"{self.prefix}-{rng.choices(range(len(popularity)), popularity)[0]}"
            elif self.num_sessions == 0:
                session = None
            num_tokens = self.ingest_num_tokens if kind is Kind.INGEST else self.prompt_num_tokens
            yield Task(number, kind, session, self.text_of(num_tokens, f"{stream}/{number}"))


def parse_shares(text: str) -> dict[Kind, float]:
    """`chat=8,ingest=1`. Raises ValueError."""
    shares: dict[Kind, float] = {}
    for item in text.split(","):
        name, _, weight = item.partition("=")
        kind = Kind(name.strip())
        shares[kind] = float(weight)
        if not 0 < shares[kind] < float("inf"):
            raise ValueError(f"not a share: {item!r}")
    return shares


def poisson_arrivals(rng: random.Random, rate: float, duration_seconds: float) -> list[float]:
    """Moments, `rate` a second on average, independent of each other and of how the server is doing."""
    moments: list[float] = []
    moment = rng.expovariate(rate)
    while moment < duration_seconds:
        moments.append(moment)
        moment += rng.expovariate(rate)
    return moments

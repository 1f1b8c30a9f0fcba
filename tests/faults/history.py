"""Judges a history of what clients did to sessions and were told: is each session one register with compare-and-set?

Pure: it takes what was observed and how a session's chain of digests grows, and returns what is wrong. A *turn* carries
a number that no other turn of the history has, whichever attempt it is; a *read* is told a version and the
tokens_digest at it. The model of one session:

- every acknowledged turn made a version of its own, and a turn acknowledged before another began made a smaller one;
- what was acknowledged is in the chain at its version for ever; what was refused is not in it; what was left without
  an answer is in it once or not at all;
- a read tells a committed version, whose digest is that of the chain up to it, and no older one than was acknowledged,
  or told, before it began.
"""

import itertools
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

# The digests of a session that takes these turns in this order: one more than there are turns, the first of none.
Replay = Callable[[Sequence[int]], Sequence[str]]

# So many turns without an answer can be tried in every order in no time.
MAX_UNANSWERED = 6


class Outcome(StrEnum):
    """`refused`: it is certain that nothing was applied.   `unanswered`: it may or may not have been."""

    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    UNANSWERED = "unanswered"


@dataclass(frozen=True, slots=True)
class Turn:
    """One attempt. Times in seconds of one clock; version: what the acknowledgement told."""

    session: str
    number: int
    invoked: float
    returned: float
    outcome: Outcome
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """What a session was found to be."""

    session: str
    invoked: float
    returned: float
    version: int
    tokens_digest: str


Operation = Turn | Read


def violations(history: Iterable[Operation], final: Mapping[str, tuple[int, str]], replay: Replay) -> list[str]:
    """What is wrong, one sentence each; empty when nothing is.

    final: of each session, its version and tokens_digest when all operations had returned.
    """
    by_session: dict[str, list[Operation]] = {session: [] for session in final}
    for operation in history:
        by_session[operation.session].append(operation)
    return [
        f"{session}: {sentence}"
        for session, operations in by_session.items()
        for sentence in _violations(operations, final[session], replay)
    ]


def _violations(operations: Sequence[Operation], final: tuple[int, str], replay: Replay) -> Iterator[str]:
    turns = [operation for operation in operations if isinstance(operation, Turn)]
    reads = [operation for operation in operations if isinstance(operation, Read)]
    final_version, final_digest = final
    wrong = [*_wrong_acknowledgements(turns, final_version), *_wrong_order(operations)]
    yield from wrong
    if wrong:
        return
    digests = _explain(turns, final_version, final_digest, replay)
    if digests is None:
        yield f"no order of its turns explains version {final_version} with digest {final_digest}"
        return
    for read in reads:
        if not 0 <= read.version < len(digests):
            yield f"a read was told version {read.version}, which was never committed"
        elif read.tokens_digest != digests[read.version]:
            yield f"a read of version {read.version} was told another digest than its turns have"


def _wrong_acknowledgements(turns: Sequence[Turn], final_version: int) -> Iterator[str]:
    acknowledged = [turn for turn in turns if turn.outcome is Outcome.ACKNOWLEDGED]
    for number, times in Counter(turn.number for turn in acknowledged).items():
        versions = {turn.version for turn in acknowledged if turn.number == number}
        if times > 1 and len(versions) > 1:
            yield f"turn {number} was acknowledged as several versions: {sorted(map(str, versions))}"
    numbers_by_version: dict[int | None, set[int]] = {}
    for turn in acknowledged:
        numbers_by_version.setdefault(turn.version, set()).add(turn.number)
    for version, numbers in numbers_by_version.items():
        if version is None or version < 1:
            yield f"turns {sorted(numbers)} were acknowledged as version {version}"
        elif len(numbers) > 1:
            yield f"turns {sorted(numbers)} were all acknowledged as version {version}"
        elif version > final_version:
            yield f"turn {min(numbers)} was acknowledged as version {version} and the session ended at {final_version}"


def _wrong_order(operations: Sequence[Operation]) -> Iterator[str]:
    """Versions that are older than what somebody had been told before the operation began."""
    told = [(op.returned, op.version) for op in operations if op.version is not None]
    told.sort()
    known = list(itertools.accumulate((version for _, version in told), max))
    times = [returned for returned, _ in told]
    for operation in operations:
        if operation.version is None:
            continue
        index = bisect_left(times, operation.invoked)
        newest = known[index - 1] if index else 0
        if isinstance(operation, Turn) and operation.version <= newest and not _was_told(operations, operation):
            yield f"turn {operation.number} made version {operation.version} after version {newest} had been told"
        if isinstance(operation, Read) and operation.version < newest:
            yield f"a read was told version {operation.version} after version {newest} had been told"


def _was_told(operations: Sequence[Operation], turn: Turn) -> bool:
    """Whether an earlier attempt of the same turn may have made its version: the answer was a replay."""
    return any(
        isinstance(other, Turn)
        and other.number == turn.number
        and other.invoked < turn.invoked
        and other.outcome is not Outcome.REFUSED
        for other in operations
    )


def _explain(turns: Sequence[Turn], final_version: int, final_digest: str, replay: Replay) -> Sequence[str] | None:
    """The chain's digests, when the acknowledged turns at their versions and some of the unanswered ones in the gaps
    between them end with the final digest."""
    by_version = {
        turn.version: turn.number for turn in turns if turn.outcome is Outcome.ACKNOWLEDGED and turn.version is not None
    }
    gaps = [version for version in range(1, final_version + 1) if version not in by_version]
    unanswered = sorted(
        {turn.number for turn in turns if turn.outcome is Outcome.UNANSWERED} - set(by_version.values())
    )
    if len(gaps) > len(unanswered):
        return None
    if len(unanswered) > MAX_UNANSWERED and gaps:
        raise ValueError(f"{len(unanswered)} turns without an answer are too many to try")
    for chosen in itertools.permutations(unanswered, len(gaps)):
        filled = {**by_version, **dict(zip(gaps, chosen, strict=True))}
        digests = replay([filled[version] for version in range(1, final_version + 1)])
        if digests[-1] == final_digest:
            return digests
    return None

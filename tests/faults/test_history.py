"""The judge of histories is judged: it passes what a register may do and catches what a broken store does."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.errors import CommitConflict, SessionNotFound
from engine.snapshots.tokens_digest import INITIAL_DIGEST, extend_digest
from engine.stores.base import NewGeneration, SessionKey, Store, new_generation_id
from tests.faults.history import Operation, Outcome, Read, Turn, violations
from tests.faults.wrapped_store import ForgetfulStore, UncheckedStore, WrappedStore

NUM_WRITERS = 4
NUM_TURNS_EACH = 30
SESSIONS = ("a", "b")


def digests_of(numbers: Sequence[int]) -> list[str]:
    """A chain of the turns' numbers themselves."""
    digests = [INITIAL_DIGEST]
    for number in numbers:
        digests.append(extend_digest(digests[-1], [number]))
    return [digest.hex() for digest in digests]


def acknowledged(number: int, version: int, invoked: float, returned: float) -> Turn:
    return Turn("s", number, invoked, returned, Outcome.ACKNOWLEDGED, version)


def unanswered(number: int, invoked: float = 0.0) -> Turn:
    return Turn("s", number, invoked, invoked + 1, Outcome.UNANSWERED)


def read(version: int, numbers: Sequence[int], invoked: float) -> Read:
    return Read("s", invoked, invoked + 1, version, digests_of(numbers)[-1])


def verdict(history: Sequence[Operation], final: Sequence[int], final_version: int | None = None) -> list[str]:
    version = len(final) if final_version is None else final_version
    return violations(history, {"s": (version, digests_of(final)[-1])}, digests_of)


GOOD: dict[str, tuple[list[Operation], list[int]]] = {
    "nothing happened": ([], []),
    "one after the other": ([acknowledged(7, 1, 0, 1), acknowledged(8, 2, 2, 3), read(2, [7, 8], 4)], [7, 8]),
    "at once, in either order": ([acknowledged(7, 2, 0, 5), acknowledged(8, 1, 0, 5)], [8, 7]),
    "a refused turn is tried again": (
        [Turn("s", 7, 0, 1, Outcome.REFUSED), acknowledged(7, 1, 2, 3)],
        [7],
    ),
    "a lost answer of a turn that was applied": ([unanswered(7), acknowledged(8, 2, 2, 3)], [7, 8]),
    "a lost answer of a turn that was not": ([unanswered(7), acknowledged(8, 1, 2, 3)], [8]),
    "lost answers, in the order that the digest tells": (
        [unanswered(7), unanswered(8), unanswered(9), acknowledged(5, 3, 2, 3)],
        [9, 7, 5],
    ),
    "a replayed answer tells the old version": (
        [unanswered(7, 0), acknowledged(8, 2, 2, 3), acknowledged(7, 1, 4, 5)],
        [7, 8],
    ),
    "a read beside a turn sees before or after": (
        [acknowledged(7, 1, 0, 9), read(0, [], 1), read(1, [7], 3)],
        [7],
    ),
}

BAD: dict[str, tuple[list[Operation], list[int], str]] = {
    "one version for two turns": ([acknowledged(7, 1, 0, 1), acknowledged(8, 1, 0, 1)], [8], "all acknowledged as"),
    "two versions for one turn": (
        [acknowledged(7, 1, 0, 1), acknowledged(7, 2, 2, 3)],
        [7, 7],
        "several versions",
    ),
    "an acknowledged turn is gone from the end": ([acknowledged(7, 1, 0, 1)], [], "ended at 0"),
    "an acknowledged turn was replaced": (
        [acknowledged(7, 1, 0, 1), acknowledged(8, 2, 2, 3), unanswered(9)],
        [9, 8],
        "no order",
    ),
    "two turns were merged": ([acknowledged(7, 1, 0, 1), acknowledged(8, 2, 2, 3)], [8, 7], "no order"),
    "a version that nobody made": ([acknowledged(7, 1, 0, 1)], [7, 8], "no order"),
    "a refused turn was applied": ([Turn("s", 7, 0, 1, Outcome.REFUSED)], [7], "no order"),
    "versions run backwards in time": (
        [acknowledged(7, 2, 0, 1), acknowledged(8, 1, 2, 3)],
        [8, 7],
        "after version 2 had been told",
    ),
    "a read steps back behind an acknowledgement": (
        [acknowledged(7, 1, 0, 1), read(0, [], 2)],
        [7],
        "a read was told version 0 after",
    ),
    "a read steps back behind a read": (
        [acknowledged(7, 1, 0, 9), read(1, [7], 1), read(0, [], 3)],
        [7],
        "a read was told version 0 after",
    ),
    "a read of what was taken back": (
        [acknowledged(7, 1, 0, 1), read(1, [8], 2)],
        [7],
        "another digest",
    ),
    "a read of a version that never was": ([read(3, [7], 0)], [], "never committed"),
    "a turn that made no version": ([acknowledged(7, 0, 0, 1)], [], "as version 0"),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_a_register_may_do_passes(name: str) -> None:
    history, final = GOOD[name]
    assert verdict(history, final) == []


@pytest.mark.parametrize("name", BAD)
def test_what_a_register_may_not_do_is_caught(name: str) -> None:
    history, final, sentence = BAD[name]
    assert any(sentence in found for found in verdict(history, final)), verdict(history, final)


def test_sessions_are_judged_apart() -> None:
    history = [acknowledged(7, 1, 0, 1), Turn("t", 8, 0, 1, Outcome.ACKNOWLEDGED, 1)]
    final = {"s": (1, digests_of([7])[-1]), "t": (1, digests_of([9])[-1])}
    assert violations(history, final, digests_of) == [
        f"t: no order of its turns explains version 1 with digest {final['t'][1]}"
    ]


def race(store: Store) -> list[str]:
    """The verdict over writers and readers of two sessions whose state is the chain's digest itself."""
    history: list[Operation] = []
    lock = threading.Lock()
    keys = {session: SessionKey("tenant", session) for session in SESSIONS}

    def look(session: str) -> tuple[int, bytes]:
        try:
            head, parts = store.load(keys[session])
        except SessionNotFound:
            return 0, INITIAL_DIGEST
        return head.version, b"".join(parts)

    def write(session: str, number: int, dice: random.Random) -> Turn:
        invoked = time.monotonic()
        try:
            base = store.read_head(keys[session])
            digest = extend_digest(look(session)[1], [number])
            time.sleep(dice.uniform(0, 0.001))
            head = store.commit(keys[session], base, _generation(digest))
        except CommitConflict:
            return Turn(session, number, invoked, time.monotonic(), Outcome.REFUSED)
        return Turn(session, number, invoked, time.monotonic(), Outcome.ACKNOWLEDGED, head.version)

    def work(writer: int) -> None:
        dice = random.Random(writer)
        for step in range(NUM_TURNS_EACH):
            session = dice.choice(SESSIONS)
            operation: Operation = write(session, writer * NUM_TURNS_EACH + step, dice)
            invoked = time.monotonic()
            version, digest = look(session)
            told = Read(session, invoked, time.monotonic(), version, digest.hex())
            with lock:
                history.extend((operation, told))

    with ThreadPoolExecutor(NUM_WRITERS) as threads:
        list(threads.map(work, range(NUM_WRITERS)))
    final = {session: (version, digest.hex()) for session in SESSIONS for version, digest in [look(session)]}
    return violations(history, final, digests_of)


def _generation(digest: bytes) -> NewGeneration:
    return NewGeneration(
        generation=new_generation_id(), parts=[digest], digest="", position=0, created=0.0, updated=0.0
    )


def test_a_race_on_a_store_that_compares_is_a_register(store: Store) -> None:
    assert race(store) == []


@pytest.mark.parametrize("broken", [UncheckedStore, ForgetfulStore])
@pytest.mark.parametrize("store_url", ["memory", pytest.param("redis", marks=pytest.mark.redis)], indirect=True)
def test_a_race_on_a_broken_store_is_caught(store: Store, broken: Callable[[Store], WrappedStore]) -> None:
    assert race(broken(store)) != []

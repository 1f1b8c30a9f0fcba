"""Two servers on one Redis write the same sessions at once, and a judge of histories says whether each session was a
register with compare-and-set.

The lease would keep the writers apart and is only meant to save work, so a thief takes every lease away all the time:
what is left is the fence of the head.
"""

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis

from engine.sequence import DEFAULT_TENANT
from engine.stores.base import SessionKey
from engine.stores.redis_keys import RedisKeys
from tests.faults.figures import tell
from tests.faults.history import Operation, Outcome, Read, Turn, violations
from tests.redis_server import RedisServer
from tests.server.forked import ForkedServer, Forker
from tests.server.harness import ask, sdk, serving, session_of, user

SESSIONS = [f"s-{number}" for number in range(20)]
NUM_CLIENTS = 4
READS_PER_TURN = 0.25
THEFT_SECONDS = 0.005
OF_NOTHING = "00" * 16


def say(client: httpx.Client, session: str, number: int) -> httpx.Response:
    return ask(client, f"turn {number}", session_id=session, max_tokens=2, ignore_eos=True)


def take_turn(client: httpx.Client, session: str, number: int) -> Turn:
    invoked = time.monotonic()
    response = say(client, session, number)
    returned = time.monotonic()
    if response.status_code == httpx.codes.CONFLICT:
        assert response.json()["error"]["code"] == "session_busy", response.text
        return Turn(session, number, invoked, returned, Outcome.REFUSED)
    assert response.status_code == httpx.codes.OK, response.text
    return Turn(session, number, invoked, returned, Outcome.ACKNOWLEDGED, response.json()["session"]["version"])


def look(client: httpx.Client, session: str) -> Read:
    invoked = time.monotonic()
    response = client.get(f"/v1/sessions/{session}")
    returned = time.monotonic()
    if response.status_code == httpx.codes.NOT_FOUND:
        return Read(session, invoked, returned, 0, OF_NOTHING)
    body = response.raise_for_status().json()
    return Read(session, invoked, returned, body["version"], body["tokens_digest"])


@contextmanager
def leases_stolen(url: str) -> Iterator[None]:
    is_over = threading.Event()
    leases = [RedisKeys("atlas").lease(SessionKey(DEFAULT_TENANT, session)) for session in SESSIONS]

    def steal() -> None:
        with redis.Redis.from_url(url) as direct:
            while not is_over.wait(THEFT_SECONDS):
                direct.delete(*leases)

    thief = threading.Thread(target=steal)
    thief.start()
    try:
        yield
    finally:
        is_over.set()
        thief.join()


def race(base_urls: Sequence[str], num_turns: int) -> list[Operation]:
    """`NUM_CLIENTS` clients of each server; every turn is tried until it is acknowledged."""
    numbers = itertools.count()
    history: list[Operation] = []

    def work(client_number: int) -> None:
        dice = random.Random(client_number)
        base_url = base_urls[client_number % len(base_urls)]
        with httpx.Client(base_url=base_url, timeout=60) as client:
            while (number := next(numbers)) < num_turns:
                session = dice.choice(SESSIONS)
                outcome = Outcome.REFUSED
                while outcome is not Outcome.ACKNOWLEDGED:
                    turn = take_turn(client, session, number)
                    outcome = turn.outcome
                    history.append(turn)
                if dice.random() < READS_PER_TURN:
                    history.append(look(client, session))

    with ThreadPoolExecutor(NUM_CLIENTS * len(base_urls)) as threads:
        list(threads.map(work, range(NUM_CLIENTS * len(base_urls))))
    return history


def replayer(client: httpx.Client) -> Callable[[Sequence[int]], Sequence[str]]:
    """The digests of a session of its own, on a server that nothing happens to."""
    names = itertools.count()

    def replay(numbers: Sequence[int]) -> list[str]:
        session = f"replay-{next(names)}"
        digests = [OF_NOTHING]
        for number in numbers:
            assert say(client, session, number).status_code == httpx.codes.OK
            digests.append(session_of(client, session)["tokens_digest"])
        return digests

    return replay


def race_and_judge(forker: Forker, model: Path, folder: Path, url: str, num_turns: int) -> None:
    def server(store: str) -> ForkedServer:
        return ForkedServer(forker, folder, model=str(model), store=store)

    started = time.monotonic()
    with server(url) as left, server(url) as right, leases_stolen(url):
        history = race([f"http://127.0.0.1:{each.port}" for each in (left, right)], num_turns)
        seconds = time.monotonic() - started
        looks = [look(left.client, session) for session in SESSIONS]
    final = {told.session: (told.version, told.tokens_digest) for told in looks}
    with server("memory://") as peaceful:
        assert violations(history, final, replayer(peaceful.client)) == []
    outcomes = Counter(operation.outcome for operation in history if isinstance(operation, Turn))
    assert outcomes[Outcome.ACKNOWLEDGED] == sum(version for version, _ in final.values()) == num_turns
    assert outcomes[Outcome.REFUSED] > num_turns // 100, "they hardly ever met"
    tell(
        f"{num_turns} turns on {len(SESSIONS)} sessions by two servers in {seconds:.0f} s: "
        f"{outcomes[Outcome.REFUSED]} conflicts, {sum(isinstance(it, Read) for it in history)} reads, 0 lost, 0 merged"
    )


@pytest.mark.redis
def test_two_servers_racing_for_600_turns_lose_none_and_merge_none(
    forker: Forker, model: Path, tmp_path: Path, own_redis: RedisServer
) -> None:
    race_and_judge(forker, model, tmp_path, own_redis.url, 600)


@pytest.mark.redis
@pytest.mark.slow
def test_two_servers_racing_for_5000_turns_lose_none_and_merge_none(
    forker: Forker, model: Path, tmp_path: Path, own_redis: RedisServer
) -> None:
    race_and_judge(forker, model, tmp_path, own_redis.url, 5000)


def test_ten_clients_of_the_stock_library_on_one_session_end_as_some_serial_run(model: Path) -> None:
    """Its two retries are not enough for ten at once; these wait longer."""

    def say_until_heard(number: int) -> tuple[int, int]:
        with sdk(server.base_url, max_retries=60) as library:
            answer = library.chat.completions.create(
                model="atlas-tiny",
                messages=[user(f"turn {number}")],
                max_tokens=2,
                temperature=0,
                extra_body={"session_id": "s", "ignore_eos": True},
            )
        return (answer.model_extra or {})["session"]["version"], number

    with serving(model) as server, httpx.Client(base_url=server.base_url, timeout=60) as client:
        with ThreadPoolExecutor(10) as threads:
            order = sorted(threads.map(say_until_heard, range(10)))
        assert [version for version, _ in order] == list(range(1, 11))
        assert session_of(client, "s")["tokens_digest"] == replayer(client)([number for _, number in order])[-1]
        assert 'atlas_session_conflicts_total{reason="session_busy"}' in client.get("/metrics").text

"""A machine that tries everything in any order finds nothing where nothing is broken, and what is broken elsewhere.

What fails is printed with what repeats it: `reproduce_failure(...)`, applied in place of `seed(number)` below.
"""

import asyncio
import itertools
import os
import secrets
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.errors import FlakyFailure
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from redis import Redis

from engine.engine import Engine
from engine.sessions.committed import CommittedSessions
from engine.sessions.host_copies import LoadedSession
from engine.sessions.stored_turns import StoredTurns
from engine.stores.base import Head, NewGeneration, SessionKey
from engine.stores.memory import MemoryStore
from engine.stores.redis import RedisStore
from tests.engine.harness import SMALL, tiny
from tests.faults.figures import tell
from tests.faults.state_machine.backends import Backend, Clock, LocalBackend, MemoryBackend, RedisBackend
from tests.faults.state_machine.machine import Laboratory, SessionMachine
from tests.faults.state_machine.oracle import Oracle
from tests.faults.state_machine.process_machine import ProcessMachine
from tests.faults.state_machine.server_replica import SETTINGS, ServerReplica
from tests.redis_server import RedisServer, redis_is_installed
from tests.server.forked import ForkedServer, Forker

# Two minutes in all; the long run has the same shares.
SECONDS = {"MemoryBackend": 10.0, "LocalBackend": 15.0, "RedisBackend": 35.0}
LONG_SECONDS = float(os.environ.get("STATE_MACHINE_SECONDS", "1800"))
STEPS_PER_EXAMPLE = 40
SECONDS_TO_FIND_A_BUG = 120.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Idle times are counted by it. Nobody waits long: neither a commit for its retry nor a writer for a dead one."""
    clock = Clock()
    monkeypatch.setattr("engine.stores.expiry.time", clock)
    monkeypatch.setattr("engine.sessions.storage.COMMIT_RETRY_SECONDS", (0.001, 0.001))
    monkeypatch.setattr("engine.sessions.leases.POLL_SECONDS", 0.01)
    return clock


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where the system allows it: what outlives a killed process need not outlive the machine."""
    shared = Path("/dev/shm")
    if not shared.is_dir():
        yield tmp_path
        return
    with TemporaryDirectory(dir=shared) as name:
        yield Path(name)


@pytest.fixture
def redis(folder: Path) -> Iterator[RedisServer]:
    if not redis_is_installed():
        pytest.skip("redis-server is not installed")
    with RedisServer(folder / "redis", "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture(params=["memory", "local", pytest.param("redis", marks=pytest.mark.redis)])
def backend(request: pytest.FixtureRequest, clock: Clock, folder: Path) -> Backend:
    if request.param == "memory":
        return MemoryBackend(clock)
    if request.param == "local":
        return LocalBackend(folder / "sessions", clock)
    return RedisBackend(request.getfixturevalue("redis"))


@pytest.fixture
def laboratory() -> Iterator[Laboratory]:
    with asyncio.Runner() as runner:
        engine = Engine(tiny(), SMALL)
        runner.get_loop().call_soon(engine.start)
        laboratory = Laboratory(runner.get_loop(), Oracle(engine))
        yield laboratory
        runner.run(engine.stop())
    tell(f"{laboratory.num_examples} examples, {laboratory.tried.total()} steps: {dict(laboratory.tried)}")


def run_machines(
    make: partial[Any],
    seconds: float,
    first_seed: int,
    phases: Sequence[Phase] = (Phase.generate, Phase.shrink),
    examples_per_run: int = 10,
) -> None:
    """Runs of a few examples each, the seed counting up, until the time is over."""
    deadline = time.monotonic() + seconds
    for number in itertools.count(first_seed):
        run_state_machine_as_test(
            cast(type[RuleBasedStateMachine], seed(number)(make)),
            settings=settings(
                max_examples=examples_per_run,
                stateful_step_count=STEPS_PER_EXAMPLE,
                deadline=None,
                database=None,
                print_blob=True,
                phases=phases,
                suppress_health_check=list(HealthCheck),
            ),
        )
        if time.monotonic() > deadline:
            return


@pytest.mark.timeout(900)
def test_sessions_are_what_the_model_says_after_every_step(laboratory: Laboratory, backend: Backend) -> None:
    """The same seeds every time: what it finds is the work of the change that it is run on."""
    run_machines(partial(SessionMachine, laboratory, backend), SECONDS[type(backend).__name__], first_seed=0)
    assert laboratory.tried["Turn done"] > 0


@pytest.mark.slow
@pytest.mark.timeout(LONG_SECONDS + 900)
def test_sessions_are_what_the_model_says_for_half_an_hour(laboratory: Laboratory, backend: Backend) -> None:
    """Seeds that were never tried before."""
    seconds = LONG_SECONDS * SECONDS[type(backend).__name__] / sum(SECONDS.values())
    run_machines(partial(SessionMachine, laboratory, backend), seconds, first_seed=secrets.randbits(32))
    for kind in ("Create", "Turn", "Ingest", "Rewind", "Fork", "Carry", "Name", "Unname", "Delete"):
        assert laboratory.tried[f"{kind} done"] > 0, laboratory.tried
    for told in ("Turn replayed", "Turn session_busy", "Ingest the client went away"):
        assert laboratory.tried[told] > 0, laboratory.tried


@pytest.mark.slow
@pytest.mark.redis
@pytest.mark.timeout(LONG_SECONDS + 900)
def test_sessions_on_server_processes_are_what_the_model_says_for_half_an_hour(
    laboratory: Laboratory, redis: RedisServer, forker: Forker, model: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(Redis.from_url(redis.url))
        replicas = []
        for name in ("one", "two"):
            folder = tmp_path / name
            folder.mkdir()
            settings = {"model": str(model), "store": redis.url, **SETTINGS}
            replicas.append(ServerReplica(stack.enter_context(ForkedServer(forker, folder, **settings))))
        make = partial(ProcessMachine, laboratory, replicas, redis, client)
        run_machines(make, LONG_SECONDS, secrets.randbits(32), examples_per_run=3)
    assert laboratory.tried["Turn done"] > 0


class UncheckedMemoryStore(MemoryStore):
    """Broken: the last writer wins, whatever it had read."""

    def commit(self, key: SessionKey, base: Head | None, new: NewGeneration) -> Head:
        return super().commit(key, self.read_head(key), new)


class UncheckedRedisStore(RedisStore):
    """Broken in the same way."""

    def commit(self, key: SessionKey, base: Head | None, new: NewGeneration) -> Head:
        return super().commit(key, self.read_head(key), new)


def found_in(laboratory: Laboratory, backend: Backend) -> str:
    """What the machine says of a bug; fails when it finds none in time."""
    make = partial(SessionMachine, laboratory, backend)
    try:
        run_machines(make, SECONDS_TO_FIND_A_BUG, first_seed=0, phases=[Phase.generate])
    except (AssertionError, FlakyFailure) as error:
        return "".join(traceback.format_exception(error))
    raise AssertionError(f"nothing was found in {laboratory.num_examples} examples")


def test_a_commit_without_the_version_check_is_found(laboratory: Laboratory, clock: Clock) -> None:
    assert "AssertionError: overtaken by" in found_in(laboratory, MemoryBackend(clock, UncheckedMemoryStore))


@pytest.mark.redis
@pytest.mark.usefixtures("clock")
def test_a_commit_to_redis_without_the_version_check_is_found(laboratory: Laboratory, redis: RedisServer) -> None:
    assert "AssertionError: overtaken by" in found_in(laboratory, RedisBackend(redis, UncheckedRedisStore))


def test_a_request_that_is_carried_out_twice_is_found(
    laboratory: Laboratory, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StoredTurns, "find_turn", lambda *_: None)
    assert " is told " in found_in(laboratory, MemoryBackend(clock))


def test_a_rewind_that_remembers_later_documents_is_found(
    laboratory: Laboratory, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_version = CommittedSessions.load_version

    async def load_version_with_later_documents(self: Any, key: SessionKey, version: int) -> LoadedSession:
        loaded = await load_version(self, key, version)
        assert loaded.stored is not None
        now = await self._storage.load_stored(key)
        return replace(loaded, stored=replace(loaded.stored, documents=now.documents))

    monkeypatch.setattr(CommittedSessions, "load_version", load_version_with_later_documents)
    assert "AssertionError: Ingest(" in found_in(laboratory, MemoryBackend(clock))

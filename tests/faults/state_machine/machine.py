"""Sessions under everything that a client, another replica, a kill and a lost reply may do to them, in any order; after
each step they are what the model says."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from engine import failpoints
from engine.sequence import SequenceState
from tests.engine.harness import assert_same_session
from tests.faults.state_machine import strategies
from tests.faults.state_machine.backends import Backend
from tests.faults.state_machine.following import Follower, difference
from tests.faults.state_machine.operations import Operation, Outcome, Refused, Rewind, Turn
from tests.faults.state_machine.oracle import Oracle
from tests.faults.state_machine.predicted import Prediction
from tests.faults.state_machine.replicas import Replica

T = TypeVar("T")

DEADLINE_SECONDS = 60
REPLICAS = st.integers(0, 1)
FAILPOINTS = (
    "redis.request",
    "redis.reply",
    "commit.before_parts",
    "commit.part",
    "commit.before_flip",
    "commit.in_flip",
    "commit.after_flip",
)


class Laboratory:
    """What machines share: a loop, an oracle on it, and what they have tried so far."""

    def __init__(self, loop: asyncio.AbstractEventLoop, oracle: Oracle) -> None:
        self.loop = loop
        self.oracle = oracle
        self.num_examples = 0
        self.tried: Counter[str] = Counter()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, DEADLINE_SECONDS))


class SessionMachine(RuleBasedStateMachine):
    """Two replicas on one store."""

    def __init__(self, laboratory: Laboratory, backend: Backend) -> None:
        super().__init__()
        self._laboratory = laboratory
        self._backend = backend
        laboratory.num_examples += 1
        self._backend.begin()
        self._replicas: list[Replica] = []
        self._has_failed = False
        self._run(self._start_replicas())
        self._follower = Follower(self._replicas, laboratory.oracle, laboratory.tried)
        self._model = self._follower.model

    @rule(data=st.data(), number=REPLICAS)
    def turn(self, data: st.DataObject, number: int) -> None:
        self._draw_and_perform(data, strategies.turns(self._model.sessions), number)

    @rule(data=st.data(), number=REPLICAS)
    def ingest(self, data: st.DataObject, number: int) -> None:
        self._draw_and_perform(data, strategies.ingests(self._model.sessions), number)

    @rule(data=st.data(), number=REPLICAS)
    def create(self, data: st.DataObject, number: int) -> None:
        self._draw_and_perform(data, strategies.creations(self._model.sessions), number)

    @rule(data=st.data(), number=REPLICAS)
    def rewind(self, data: st.DataObject, number: int) -> None:
        self._draw_and_perform(data, strategies.rewinds(self._model.sessions), number)

    @rule(data=st.data(), number=REPLICAS)
    def fork_or_carry(self, data: st.DataObject, number: int) -> None:
        self._draw_and_perform(data, strategies.forks(self._model.sessions), number)

    @rule(data=st.data(), number=REPLICAS)
    def name_or_unname(self, data: st.DataObject, number: int) -> None:
        self._draw_and_perform(data, strategies.namings(self._model.sessions), number)

    @rule(data=st.data(), number=REPLICAS)
    def delete(self, data: st.DataObject, number: int) -> None:
        self._draw_and_perform(data, strategies.deletions(self._model.sessions), number)

    @precondition(lambda self: self._follower.performed)
    @rule(data=st.data(), number=REPLICAS)
    def repeat(self, data: st.DataObject, number: int) -> None:
        self._draw_and_perform(data, strategies.repetitions(self._follower.performed), number)

    @precondition(lambda self: self._follower.performed)
    @rule(data=st.data(), number=REPLICAS)
    def undo_and_repeat(self, data: st.DataObject, number: int) -> None:
        operation = data.draw(strategies.repetitions(self._follower.performed))
        session = self._model.sessions.get(operation.session)
        for last in () if session is None else session.versions[1:2]:
            self._run(self._follower.perform(Rewind(operation.session, last.number), number))
        self._run(self._follower.perform(operation, number))

    @rule(data=st.data(), number=REPLICAS, step=st.sampled_from(FAILPOINTS), nth=st.integers(1, 12))
    def lose_a_store_call(self, data: st.DataObject, number: int, step: str, nth: int) -> None:
        """The store fails once, before or after it did what was asked; the client asks again."""
        operation = data.draw(strategies.operations(self._model.sessions))
        self._perform_while_failing(operation, number, f"{step}={nth}:error", dies=False)

    @rule(data=st.data(), number=REPLICAS, step=st.sampled_from(FAILPOINTS), nth=st.integers(1, 12))
    def kill_a_replica_inside_an_operation(self, data: st.DataObject, number: int, step: str, nth: int) -> None:
        operation = data.draw(strategies.operations(self._model.sessions))
        self._perform_while_failing(operation, number, f"{step}={nth}:error", dies=True)

    @rule(data=st.data(), number=REPLICAS)
    def kill_a_replica_before_it_commits(self, data: st.DataObject, number: int) -> None:
        turn = data.draw(strategies.turns(self._model.sessions))
        self._run(self._kill_before_commit(turn, number))

    @rule(data=st.data(), number=REPLICAS)
    def overtake_a_turn(self, data: st.DataObject, number: int) -> None:
        """Another replica changes the session between a turn's answer and its commit."""
        turn = data.draw(strategies.turns(self._model.sessions))
        other = data.draw(strategies.operations(self._model.sessions).map(lambda it: replace(it, session=turn.session)))
        self._run(self._overtake(turn, other, number))

    @precondition(lambda self: self._backend.can_be_killed)
    @rule(data=st.data(), number=REPLICAS, delay_seconds=st.floats(0, 0.03))
    def kill_the_store(self, data: st.DataObject, number: int, delay_seconds: float) -> None:
        """While an operation runs, where replicas survive it."""
        if self._backend.ends_its_replicas:
            self._run(self._kill_store_and_replicas())
        else:
            operation = data.draw(strategies.operations(self._model.sessions))
            perform = partial(self._kill_store_during, operation, number, delay_seconds)
            self._run(self._follower.perform_undecided(operation, perform))

    @rule(seconds=st.sampled_from((45, 60, 2 * strategies.TTL_SECONDS)))
    def let_time_pass(self, seconds: int) -> None:
        self._backend.let_pass(seconds)
        uncertain = self._model.let_pass(seconds)
        for session_id in uncertain:
            if self._run(self._replicas[0].view(session_id)) is None:
                self._model.put(session_id, None)
        self._run(self._check_all())

    @rule()
    def check_states(self) -> None:
        self._run(self._check_states())

    def teardown(self) -> None:
        failpoints.disarm()
        try:
            if not self._has_failed:
                self._run(self._check_all())
                self._run(self._check_states())
                self._backend.check(self._run(self._replicas[0].heads()))
        finally:
            self._run(self._kill_replicas())
            self._backend.end()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return self._laboratory.run(work)
        except BaseException:
            self._has_failed = True
            raise

    def _perform_while_failing(self, operation: Operation, number: int, spec: str, *, dies: bool) -> None:
        perform = partial(self._perform_armed, operation, number, spec, dies=dies)
        self._run(self._follower.perform_undecided(operation, perform))

    def _draw_and_perform(self, data: st.DataObject, strategy: st.SearchStrategy[Operation], number: int) -> None:
        self._run(self._follower.perform(data.draw(strategy), number))

    async def _perform_armed(self, operation: Operation, number: int, spec: str, *, dies: bool) -> Outcome:
        replica = self._replicas[number]
        replica.store.dies_at_failure = dies
        failpoints.arm(spec)
        outcome = await replica.perform(operation)
        failpoints.disarm()
        replica.store.dies_at_failure = False
        if replica.store.is_dead:
            await self._replace(number)
        return outcome

    async def _kill_before_commit(self, turn: Turn, number: int) -> None:
        prediction = await self._follower.predict(turn)
        replica = self._replicas[number]

        async def die() -> None:
            replica.store.is_dead = True

        outcome = await replica.perform(turn, die)
        if replica.store.is_dead:
            await self._replace(number)
            assert (outcome == Refused("store_unavailable")) == bool(prediction.path)
            await self._follower.check(turn.session)
            await self._follower.perform(turn, number)
        else:
            await self._follower.accept(turn, outcome, prediction)

    async def _overtake(self, turn: Turn, other: Operation, number: int) -> None:
        prediction = await self._follower.predict(turn)
        before = self._model.sessions.get(turn.session)
        overtaking = self._replicas[1 - number]

        async def overtake() -> None:
            overtaking.store.is_alone = True
            try:
                await self._follower.perform(other, 1 - number)
            finally:
                overtaking.store.is_alone = False

        outcome = await self._replicas[number].perform(turn, overtake)
        is_overtaken = self._model.sessions.get(turn.session) is not before
        if prediction.path and is_overtaken:
            prediction = Prediction(Refused("session_busy"))
        assert outcome == prediction.outcome, f"overtaken by {other}, {difference(turn, outcome, prediction)}"
        await self._follower.accept(turn, outcome, prediction)

    async def _kill_store_during(self, operation: Operation, number: int, delay_seconds: float) -> Outcome:
        def kill() -> None:
            time.sleep(delay_seconds)
            self._backend.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        outcome = await self._replicas[number].perform(operation)
        await asyncio.to_thread(killer.join)
        return outcome

    async def _kill_store_and_replicas(self) -> None:
        await self._kill_replicas()
        self._backend.kill()
        await self._start_replicas()
        for session_id in self._model.sessions:
            self._model.used(session_id, surely=True)
        await self._check_all()

    async def _start_replicas(self) -> None:
        self._replicas[:] = [await Replica.start(self._backend.open()) for _ in range(2)]

    async def _kill_replicas(self) -> None:
        for replica in self._replicas:
            await replica.kill()

    async def _replace(self, number: int) -> None:
        await self._replicas[number].kill()
        self._replicas[number] = await Replica.start(self._backend.open())

    async def _check_all(self) -> None:
        for session_id in strategies.SESSION_IDS:
            await self._follower.check(session_id)
        for replica in self._replicas:
            listed = [key.session_id for key in await replica.heads()]
            assert listed == sorted(self._model.sessions)

    async def _check_states(self) -> None:
        """The states are those of the tokens, replayed from nothing, and each replica has the same bits."""
        for session_id, session in self._model.sessions.items():
            self._model.used(session_id, surely=False)
            expected = [await self._laboratory.oracle.state(kept.memory) for kept in session.versions]
            loaded = [await replica.states(session_id) for replica in self._replicas]
            first = loaded[0][1]
            assert len(first) == len(expected)
            for actual, wanted in zip(first, expected, strict=True):
                _assert_same(actual, wanted, 1e-9)
            for committed, stored in loaded:
                _assert_same(committed, first[0], 0)
                for left, right in zip(stored, first, strict=True):
                    _assert_same(left, right, 0)


def _assert_same(actual: SequenceState | None, expected: SequenceState | None, tolerance: float) -> None:
    assert (actual is None) == (expected is None)
    if actual is not None and expected is not None:
        assert_same_session(actual, expected, tolerance)

"""Sessions on two server processes and one Redis, every one of which is killed now and then; slower than `machine`."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.faults.state_machine import strategies
from tests.faults.state_machine.following import Follower
from tests.faults.state_machine.machine import REPLICAS, Laboratory
from tests.faults.state_machine.operations import Ingest, Operation, Outcome, Rewind, Seen
from tests.faults.state_machine.predicted import Prediction
from tests.faults.state_machine.server_replica import ServerReplica
from tests.redis_server import RedisServer

CRASH_POINTS = ("commit.before_parts", "commit.part", "commit.before_flip", "commit.after_flip")


class WireFollower(Follower):
    async def predict(self, operation: Operation) -> Prediction:
        """Without the progress of a document, which a plain answer does not tell."""
        prediction = await super().predict(operation)
        outcome = prediction.outcome
        return replace(prediction, outcome=replace(outcome, progress=()) if isinstance(outcome, Seen) else outcome)


class ProcessMachine(RuleBasedStateMachine):
    """The servers are the caller's, and are running before and after."""

    def __init__(self, laboratory: Laboratory, replicas: list[ServerReplica], redis: RedisServer, client: Any) -> None:
        """client: of the same Redis, to empty it."""
        super().__init__()
        laboratory.num_examples += 1
        client.flushall()
        self._run = laboratory.run
        self._redis = redis
        self._replicas = replicas
        self._follower = WireFollower(replicas, laboratory.oracle, laboratory.tried)

    @rule(data=st.data(), number=REPLICAS)
    def operate(self, data: st.DataObject, number: int) -> None:
        self._run(self._follower.perform(self._draw(data), number))

    @precondition(lambda self: self._follower.performed)
    @rule(data=st.data(), number=REPLICAS)
    def repeat(self, data: st.DataObject, number: int) -> None:
        self._run(self._follower.perform(data.draw(strategies.repetitions(self._follower.performed)), number))

    @rule(data=st.data(), number=REPLICAS, delay_seconds=st.floats(0, 0.05))
    def kill_a_server(self, data: st.DataObject, number: int, delay_seconds: float) -> None:
        """At any moment of an operation."""
        kill = self._replicas[number].server.kill9
        self._perform_while(kill, self._draw(data), number, delay_seconds)

    @rule(data=st.data(), number=REPLICAS, point=st.sampled_from(CRASH_POINTS), nth=st.integers(1, 3))
    def crash_a_server(self, data: st.DataObject, number: int, point: str, nth: int) -> None:
        """At a certain point of a commit."""
        server = self._replicas[number].server
        server.kill9()
        server.launch(failpoints=f"{point}={nth}:kill")
        server.wait_ready()
        self._perform_while(lambda: None, self._draw(data), number, 0)

    @rule(data=st.data(), number=REPLICAS, delay_seconds=st.floats(0, 0.05))
    def kill_redis(self, data: st.DataObject, number: int, delay_seconds: float) -> None:
        def kill() -> None:
            self._redis.kill()
            self._redis.start()

        self._perform_while(kill, self._draw(data), number, delay_seconds)

    def teardown(self) -> None:
        for replica in self._replicas:
            replica.server.kill9()
            replica.server.start()

    def _draw(self, data: st.DataObject) -> Operation:
        operation: Operation = data.draw(strategies.operations(self._follower.model.sessions).map(_on_the_wire))
        return operation

    def _perform_while(self, kill: Callable[[], None], operation: Operation, number: int, delay_seconds: float) -> None:
        async def perform() -> Outcome:
            killer = threading.Timer(delay_seconds, kill)
            killer.start()
            outcome = await self._replicas[number].perform(operation)
            killer.join()
            server = self._replicas[number].server
            server.kill9()
            server.start()
            return outcome

        self._run(self._follower.perform_undecided(operation, perform))


def _on_the_wire(operation: Operation) -> Operation:
    """As a plain HTTP client asks: a document is sent whole, and If-Match is a part of what a rewind asks for."""
    if isinstance(operation, Ingest):
        return replace(operation, breaks_after=None)
    return replace(operation, if_match=None) if isinstance(operation, Rewind) else operation

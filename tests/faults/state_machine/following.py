"""Keeps a model beside replicas: every answer is compared with its prediction, every session with what it must be."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from tests.engine.harness import tiny
from tests.faults.state_machine.model import Model
from tests.faults.state_machine.operations import (
    Carry,
    Fork,
    Name,
    Operation,
    Outcome,
    Refused,
    Seen,
    Turn,
    Unname,
    View,
)
from tests.faults.state_machine.oracle import Oracle
from tests.faults.state_machine.predicted import Prediction
from tests.faults.state_machine.predictions import Predictions

UNREACHABLE = Refused("the server is gone")
# What a client is told when the store failed it, when a lease outlived its holder, or when nobody was there.
UNDECIDED = (Refused("store_unavailable"), Refused("store_full"), Refused("session_busy"), UNREACHABLE)


class Performer(Protocol):
    """A replica, as its clients see it."""

    async def perform(self, operation: Operation) -> Outcome: ...

    async def view(self, session_id: str) -> View | None:
        """None when there is no such session."""


class Follower:
    """`tried` counts what was done and told. A failed comparison is an AssertionError."""

    def __init__(self, replicas: Sequence[Performer], oracle: Oracle, tried: Counter[str]) -> None:
        """replicas: the list may change under way."""
        self._replicas = replicas
        self._tried = tried
        self.model = Model()
        self.performed: list[Operation] = []
        self._predictions = Predictions(self.model, oracle, tiny().tokenizer, tiny().chat_format)

    async def predict(self, operation: Operation) -> Prediction:
        return await self._predictions.predict(operation)

    async def perform(self, operation: Operation, number: int) -> None:
        """By the replica of this number, where nothing is in the way."""
        prediction = await self.predict(operation)
        outcome = await self._replicas[number].perform(operation)
        await self.accept(operation, outcome, prediction)

    async def perform_undecided(self, operation: Operation, perform: Callable[[], Awaitable[Outcome]]) -> None:
        """`perform` may fail half-way: the session is then what it was, or what one of the operation's commits has made
        of it, and the client asks again."""
        prediction = await self.predict(operation)
        outcome = await perform()
        if outcome == prediction.outcome:
            await self.accept(operation, outcome, prediction)
            return
        assert outcome in UNDECIDED, difference(operation, outcome, prediction)
        before = self.model.sessions.get(operation.session)
        actual = await self._replicas[0].view(operation.session)
        possible = [session for session in (before, *prediction.path) if (session and session.view()) == actual]
        assert possible, f"{operation} has left {actual}"
        self.model.put(operation.session, possible[-1])
        self.model.used(operation.session, surely=False)
        if isinstance(operation, Fork | Carry):
            self.model.used(operation.source, surely=False)
        await self.perform(operation, 0)

    async def accept(self, operation: Operation, outcome: Outcome, prediction: Prediction) -> None:
        assert outcome == prediction.outcome, difference(operation, outcome, prediction)
        told = outcome.code if isinstance(outcome, Refused) else "replayed" if outcome.is_replay else "done"
        self._tried[f"{type(operation).__name__} {told}"] += 1
        self.performed.append(operation)
        if prediction.path:
            self.model.put(operation.session, prediction.path[-1])
        is_done = isinstance(outcome, Seen)
        is_use = bool(prediction.path) and not isinstance(operation, Name | Unname)
        self.model.used(operation.session, surely=is_done and (is_use or isinstance(operation, Turn)))
        if isinstance(operation, Fork | Carry):
            self.model.used(operation.source, surely=is_done and is_use)
        await self.check(operation.session)

    async def check(self, session_id: str) -> None:
        """Every replica says of the session what the model does."""
        session = self.model.sessions.get(session_id)
        expected = None if session is None else session.view()
        for replica in self._replicas:
            actual = await replica.view(session_id)
            assert actual == expected, f"{session_id} is {actual}, not {expected}"


def difference(operation: Operation, outcome: Outcome, prediction: Prediction) -> str:
    return f"{operation} is told {outcome} instead of {prediction.outcome}"

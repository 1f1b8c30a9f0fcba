"""The circuit breaker, on a clock that the test moves."""

import pytest

from engine.errors import CommitConflict, StoreUnavailable
from engine.stores.breaker import MAX_NUM_OUTAGES, OPEN_SECONDS, SLOW_SECONDS, CircuitBreaker


class OutageError(Exception):
    pass


class Server:
    """Counts the calls that reach it and answers each with `failure`, or well."""

    def __init__(self) -> None:
        self.now = 100.0
        self.num_calls = 0
        self.failure: Exception | None = None
        self.seconds = SLOW_SECONDS
        self.breaker = CircuitBreaker(OutageError, lambda: self.now)

    def call(self) -> None:
        with self.breaker.call():
            self.num_calls += 1
            if self.failure is not None:
                self.now += self.seconds
                raise self.failure

    def fail(self, num_times: int, failure: Exception | None = None) -> None:
        self.failure = failure or OutageError()
        for _ in range(num_times):
            with pytest.raises(type(self.failure)):
                self.call()
        self.failure = None


def refused(server: Server) -> StoreUnavailable:
    before = server.num_calls
    with pytest.raises(StoreUnavailable) as caught:
        server.call()
    assert server.num_calls == before
    return caught.value


def test_it_opens_after_as_many_outages_in_a_row_and_says_when_to_come_back() -> None:
    server = Server()
    server.fail(MAX_NUM_OUTAGES - 1)
    server.call()
    server.fail(MAX_NUM_OUTAGES)
    server.now += OPEN_SECONDS / 4
    assert refused(server).retry_after == OPEN_SECONDS * 3 / 4


def test_an_outage_between_answers_never_opens_it() -> None:
    server = Server()
    for _ in range(5 * MAX_NUM_OUTAGES):
        server.fail(MAX_NUM_OUTAGES - 1)
        server.call()


@pytest.mark.parametrize("answer", [CommitConflict("first"), StoreUnavailable("refused"), ValueError()])
def test_a_refusal_is_an_answer(answer: Exception) -> None:
    server = Server()
    server.fail(5 * MAX_NUM_OUTAGES, answer)
    server.fail(MAX_NUM_OUTAGES - 1)
    server.fail(1, answer)
    server.fail(MAX_NUM_OUTAGES - 1)
    server.call()


def test_an_outage_that_is_not_waited_for_never_opens_it() -> None:
    server = Server()
    server.seconds = SLOW_SECONDS * 0.99
    server.fail(5 * MAX_NUM_OUTAGES)
    server.call()


def test_one_call_probes_and_its_answer_closes_the_circuit() -> None:
    server = Server()
    server.fail(MAX_NUM_OUTAGES)
    server.now += OPEN_SECONDS
    with server.breaker.call():
        refused(server)
        refused(server)
    server.fail(MAX_NUM_OUTAGES - 1)
    server.call()


def test_a_probe_that_fails_opens_the_circuit_for_as_long_again() -> None:
    server = Server()
    server.fail(MAX_NUM_OUTAGES)
    for _ in range(3):
        server.now += OPEN_SECONDS
        server.fail(1)
        server.now += OPEN_SECONDS / 2
        assert refused(server).retry_after == OPEN_SECONDS / 2
        server.now -= OPEN_SECONDS / 2
    server.now += OPEN_SECONDS
    server.call()
    server.call()


def test_a_late_outage_of_an_earlier_call_does_not_end_the_probe_of_another() -> None:
    server = Server()
    early = server.breaker.call()
    early.__enter__()
    server.fail(MAX_NUM_OUTAGES)
    server.now += OPEN_SECONDS
    with server.breaker.call():
        assert not early.__exit__(OutageError, OutageError(), None)
        refused(server)
    server.call()

"""What an operation must answer, and what it must leave behind; and when it was carried out before."""

from dataclasses import dataclass

from tests.faults.state_machine.model import Answered, Session
from tests.faults.state_machine.operations import Outcome, Refused, Retriable, Seen, request_digest


@dataclass(frozen=True, slots=True)
class Prediction:
    """path: what the operation's session is after each of its commits, None being deleted; empty when nothing is
    changed."""

    outcome: Outcome
    path: tuple[Session | None, ...] = ()


def refused(code: str) -> Prediction:
    return Prediction(Refused(code))


def done(session: Session, *, is_change: bool = True) -> Prediction:
    """What is told of a session by those who do not feed it."""
    seen = Seen(session.committed.number, session.memory.position)
    return Prediction(seen, (session,) if is_change else ())


def repeated(session: Session | None, operation: Retriable) -> Answered | Refused | None:
    """The request's answer of the last time, if it was carried out before."""
    if session is None:
        return None
    digest = request_digest(operation)
    for answer in reversed(session.memory.answers):
        if operation.key is not None and answer.key == operation.key:
            return answer if answer.digest == digest else Refused("idempotency_mismatch")
    for last in session.memory.answers[-1:]:
        if operation.is_retry and (last.version, last.digest) == (session.committed.number, digest):
            return last
    return None

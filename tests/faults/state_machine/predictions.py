"""What each operation must answer, and what it must leave behind, by the contract (SESSIONS.md, 1). Turns are here."""

from collections.abc import Sequence
from dataclasses import replace

from atlas_model.text import ChatFormat, Tokenizer
from engine.sessions import History, Message
from tests.faults.state_machine.model import Answered, Memory, Model, Session, Version, committed
from tests.faults.state_machine.operations import (
    Carry,
    Create,
    Delete,
    Fork,
    Ingest,
    Name,
    Operation,
    Refused,
    Rewind,
    Seen,
    Turn,
    Unname,
    request_digest,
)
from tests.faults.state_machine.oracle import Oracle
from tests.faults.state_machine.predicted import Prediction, refused, repeated
from tests.faults.state_machine.predicted_documents import predict_ingest
from tests.faults.state_machine.predicted_versions import (
    predict_carry,
    predict_create,
    predict_delete,
    predict_fork,
    predict_name,
    predict_rewind,
    predict_unname,
)


class Predictions:
    """For the sessions that `model` has at the moment."""

    def __init__(self, model: Model, oracle: Oracle, tokenizer: Tokenizer, chat_format: ChatFormat) -> None:
        self._model = model
        self._oracle = oracle
        self._tokenizer = tokenizer
        self._chat_format = chat_format

    async def predict(self, operation: Operation) -> Prediction:
        sessions = self._model.sessions
        match operation:
            case Turn():
                return await self._turn(operation, sessions.get(operation.session))
            case Ingest():
                session = sessions.get(operation.session)
                return predict_ingest(operation, session, self._tokenizer, self._chat_format)
            case Create():
                return predict_create(operation, sessions)
            case Fork():
                return predict_fork(operation, sessions)
            case Carry():
                return predict_carry(operation, sessions)
            case Rewind():
                return predict_rewind(operation, sessions)
            case Name():
                return predict_name(operation, sessions)
            case Unname():
                return predict_unname(operation, sessions)
            case Delete():
                return predict_delete(operation, sessions)

    async def _turn(self, turn: Turn, session: Session | None) -> Prediction:
        if session is None and turn.read_only:
            return refused("session_not_found")
        known = None if turn.read_only else repeated(session, turn)
        if known is not None:
            return Prediction(known if isinstance(known, Refused) else replace(known.seen, is_replay=True))
        version = 0 if session is None else session.committed.number
        base = Memory() if session is None else session.memory
        if turn.if_match not in (None, version):
            return refused("version_conflict")
        if not turn.read_only and base.open_document is not None:
            return refused("ingest_open")
        rewound_to = None
        num_known = _num_known(turn.messages, base.ledger, turn.history)
        if num_known is None:
            found = _last_common(session, turn.messages) if session and turn.may_rewind else None
            if found is None:
                return refused("session_diverged")
            rewound_to, base = found.number, found.memory
            num_known = _num_known(turn.messages, base.ledger, turn.history)
        assert num_known is not None

        memory, text = await self._answered(turn, base, num_known)
        if turn.read_only:
            return Prediction(Seen(version, base.position, text, rewound_to))
        seen = Seen(version + 1, memory.position, text, rewound_to)
        memory = memory.with_answer(Answered(version + 1, turn.key, request_digest(turn), seen))
        return Prediction(seen, (committed(session, memory, rewound_to),))

    async def _answered(self, turn: Turn, base: Memory, num_known: int) -> tuple[Memory, str]:
        """What a turn that starts from `base` has learned, and its answer."""
        tokenizer, chat_format = self._tokenizer, self._chat_format
        spoken = _spoken(turn.messages)
        system = "\n".join(m.content for m in turn.messages if m.role == "system") or None
        feeds_system = system not in (None, base.system)
        prompt = [] if base.token_ids else chat_format.session_start(tokenizer)
        num_spoken = 0
        for message in turn.messages:
            num_spoken += message.role != "system"
            if feeds_system if message.role == "system" else num_spoken > num_known:
                prompt += chat_format.message(tokenizer, message.role, message.content)
        prompt += chat_format.generation_prompt(tokenizer)
        answer = await self._oracle.answer(base, tuple(prompt), turn.max_tokens)
        memory = replace(
            base,
            token_ids=(*base.token_ids, *prompt, *answer.token_ids, tokenizer.special.end),
            num_pending=2 if answer.is_cut else 1,
            ledger=(*base.ledger, *spoken[num_known:], _normal(Message("assistant", answer.text))),
            system=system if feeds_system else base.system,
        )
        return memory, answer.text


def _num_known(messages: Sequence[Message], ledger: Sequence[Message], history: History) -> int | None:
    """How many of the messages the session has read; None when they depart from what it has."""
    spoken = _spoken(messages)
    if history is History.NEW or (history is History.AUTO and (len(spoken) == 1 or not ledger)):
        return 0
    continued = [j for j in range(1, len(spoken)) if tuple(spoken[:j]) == tuple(ledger[-j:])]
    return max(continued, default=None)


def _last_common(session: Session, messages: Sequence[Message]) -> Version | None:
    """Of the versions before the committed one, the newest of those that have read the most of the messages."""
    known = [(_num_known(messages, kept.memory.ledger, History.MATCH) or 0, kept) for kept in session.versions[1:]]
    best = max((num_known for num_known, _ in known), default=0)
    return next((kept for num_known, kept in known if num_known == best > 0), None)


def _spoken(messages: Sequence[Message]) -> list[Message]:
    return [_normal(message) for message in messages if message.role != "system"]


def _normal(message: Message) -> Message:
    return Message(message.role, message.content.strip())

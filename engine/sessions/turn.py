"""One turn: what is fed, what comes out, and the commit (SESSIONS.md, 1).

A turn works on values: until `commit` has returned, the session is as it was, whatever happens. Leaving a turn without
a commit is the roll-back. Without a session the same turn starts from nothing and leaves nothing behind. Of several
answers the first is the one that the session remembers.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from engine.engine import Engine
from engine.sampling.logprobs import TokenLogprob
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import DEFAULT_TENANT, FinishReason, Sequence, SequenceOutput, SequenceState
from engine.sessions.beginnings import Branch, NewSession
from engine.sessions.committed import CommittedSessions
from engine.sessions.host_copies import LoadedSession
from engine.sessions.ledger import ASSISTANT, History, Message, Reading, extend_ledger, message_digest
from engine.sessions.prompts import Prompt
from engine.sessions.shielding import finish_even_if_cancelled
from engine.sessions.stored_turns import RequestIdentity, StoredTurn, StoredTurns
from engine.sessions.token_logs import Fed
from engine.snapshots.snapshot import SessionRecord
from engine.stores.base import Buffer, Generation, Head, SessionKey


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """What the wire asks for.

    messages: of a conversation.   prompts: raw texts in their place, each with answers of its own; several only without
    a session.
    session: None is a stateless turn.   if_match: the version that the client believes to be committed.
    may_rewind: messages that depart from the ledger go back to the last kept version that they continue.
    digest: of everything that makes this request what it is.   is_retry: the client's library says that it retries.
    may_begin: an absent session is begun; False is for one that must be there.
    begins: the session must be new, and this is how it begins; without a session, what is known to begin with.
    branch: the turn goes on from that version.
    note: recorded with the stored turn.   num_choices: answers to the same prompt, which is read once.
    tenant: who asks; the session's, where there is one.
    """

    sampling: SamplingParams
    messages: tuple[Message, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    digest: str = ""
    session: SessionKey | None = None
    history: History = History.AUTO
    may_rewind: bool = False
    read_only: bool = False
    if_match: int | None = None
    may_begin: bool = True
    begins: NewSession | None = None
    branch: Branch | None = None
    idempotency_key: str | None = None
    is_retry: bool = False
    note: Mapping[str, Any] = field(default_factory=dict)
    num_choices: int = 1
    tenant: str = DEFAULT_TENANT

    @property
    def writes(self) -> bool:
        return self.session is not None and not self.read_only

    @property
    def num_prompts(self) -> int:
        return max(1, len(self.prompts))

    @property
    def num_answers(self) -> int:
        return self.num_prompts * self.num_choices

    @property
    def identity(self) -> RequestIdentity:
        return RequestIdentity(self.digest, self.idempotency_key, self.is_retry)


@dataclass(frozen=True, slots=True)
class CommittedSession:
    """What a client is told about its session with an answer. `rewound_to`: the version that was gone back to."""

    session_id: str
    version: int
    committed: bool
    durability: str
    position: int
    rewound_to: int | None = None


@dataclass(frozen=True, slots=True)
class ReadPrompt:
    """A raw text as it was read. logprobs: of its tokens but the first."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice, as it ended. logprobs: of its tokens, when the request asks for them; those that a stop string hid
    are not among them.   prompt: what it answers, when that was a raw text and its tokens are asked about."""

    text: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt: ReadPrompt | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens: the logical context, what was sampled for all choices, what was in the memory already, what this call has
    learned."""

    num_prompt_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int
    num_written_tokens: int


@dataclass(frozen=True, slots=True)
class Since:
    """Which version a turn starts from, when that is not the committed one of its session.

    is_branch: it is another session's.   log: what a new session takes along of that one's token log.
    """

    generation: Generation
    is_branch: bool = False
    log: Buffer | None = None


class Turn:
    """Made by the session manager, inside the session's lease."""

    def __init__(
        self,
        request: TurnRequest,
        reading: Reading,
        sequences: list[Sequence],
        base: LoadedSession | None,
        engine: Engine,
        committed: CommittedSessions,
        since: Since | None = None,
    ) -> None:
        """sequences: one a prompt.   base: what the turn starts from, under the head that it will replace unless
        `since` says otherwise."""
        self._request = request
        self._reading = reading
        self._sequences = sequences
        self._base = base
        self._engine = engine
        self._committed = committed
        self._since = since
        self._texts = [""] * request.num_answers
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in self._texts]
        # Of each answer, the latest.
        self._outputs: dict[int, SequenceOutput] = {}
        self._is_committed = False

    @property
    def session_id(self) -> str | None:
        """Of the session that this turn will be a part of."""
        session = self._request.session
        return session.session_id if session is not None and self._request.writes else None

    @property
    def base_version(self) -> int:
        return 0 if self._head is None else self._head.version

    @property
    def text(self) -> str:
        """What the first answer says so far."""
        return self._texts[0]

    @property
    def answers(self) -> tuple[Answer, ...]:
        """All of them, once `outputs` has ended."""
        answers = []
        for index, text in enumerate(self._texts):
            reason = self._outputs[index].finish_reason
            assert reason is not None
            answers.append(Answer(text, reason, tuple(self._logprobs[index]), self.prompt(index)))
        return tuple(answers)

    def prompt(self, index: int) -> ReadPrompt | None:
        """What that answer is to, once `outputs` has told anything of it; None when its tokens are not asked about."""
        told = self._outputs[index].prompt_logprobs
        if told is None or not self._reading.prompts:
            return None
        token_ids = self._reading.prompts[index // self._request.num_choices]
        # What is put before a text is no part of it.
        own = told[len(told) - len(token_ids) + 1 :]
        return ReadPrompt(token_ids, tuple(each for each in own if each is not None))

    @property
    def num_new_tokens(self) -> int:
        """Of the prompts: what the turn feeds, beside what it may generate."""
        return sum(len(sequence.prompt_token_ids) for sequence in self._sequences)

    @property
    def usage(self) -> Usage:
        """Whole once `outputs` has ended; before, and of a turn that was left, what was read and sampled so far."""
        cached = self._base_position
        last = self._outputs.get(0)
        written = last.state.position - cached if last and last.state and self._request.writes else 0
        num_generated = sum(output.num_generated_tokens for output in self._outputs.values())
        num_read = sum(
            len(each.prompt_token_ids if number * self._request.num_choices in self._outputs else each.fed_token_ids)
            for number, each in enumerate(self._sequences)
        )
        return Usage(cached + num_read, num_generated, cached, written)

    async def outputs(self) -> AsyncGenerator[tuple[int, SequenceOutput], None]:
        """Runs the turn: what each step has produced, with the number of its answer. Raises what ended any of them, if
        that was not `stop` or `length`; closing it early aborts all."""
        answers = self._engine.generate_choices(self._sequences, self._request.num_choices)
        async with aclosing(answers) as outputs:
            async for index, output in outputs:
                if not self._outputs:
                    self._committed.resumed(self._base, output.resume)
                self._texts[index] += output.text
                self._logprobs[index] += output.logprobs
                self._outputs[index] = output
                yield index, output

    def session(self) -> CommittedSession | None:
        """What the client is told; for a turn that writes this holds only once `commit` has returned."""
        key = self._request.session
        if key is None:
            return None
        writes = self._request.writes
        return CommittedSession(
            session_id=key.session_id,
            version=self.base_version + (1 if writes else 0),
            committed=writes,
            durability=self._committed.durability,
            position=self._state.position if writes else self._base_position,
            rewound_to=None if self._since is None or self._since.is_branch else self._since.generation.version,
        )

    async def commit(self, response: Mapping[str, Any]) -> None:
        """Makes the turn part of the session, `response` with it; nothing for a turn that does not write.

        Raises SessionBusy when another writer was first, StoreUnavailable, StoreFull. Once this has begun, a
        cancellation no longer takes the turn back.
        """
        request = self._request
        if request.session is None or not request.writes:
            return
        fed_token_ids = self._outputs[0].fed_token_ids
        assert fed_token_ids is not None
        base, record = self._base, None if self._base is None else self._base.record
        entries = self._reading.entries
        if request.messages:
            entries = (*entries, message_digest(Message(ASSISTANT, self.text)))
        new = SessionRecord(
            state=self._state,
            ledger=extend_ledger(record.ledger if record else (), entries),
            system_digest=self._reading.system_digest,
            open_ingest=None,
        )
        turn = StoredTurn(self.base_version + 1, request.idempotency_key, request.digest, response, request.note)
        stored = base.stored if base and base.stored else StoredTurns()
        fed = Fed(fed_token_ids, entries)
        if self._since is not None:
            fed = replace(fed, since=self._since.generation, log=self._since.log)
            if self._since.is_branch:
                stored = stored.forked(request.session.session_id)
        # Answers with log-probabilities have megabytes, and their sizes are counted.
        stored = await asyncio.to_thread(stored.with_turn, turn)
        stored = replace(stored, tokens_digest=new.state.tokens_digest.hex())
        commit = self._committed.commit(request.session, self._head, new, stored, fed, request.begins)
        await finish_even_if_cancelled(commit)
        self._is_committed = True

    def close(self) -> None:
        """To be called when the turn is over: no session goes on from what it has not committed."""
        for index, output in self._outputs.items():
            if output.state is not None and not (index == 0 and self._is_committed):
                self._engine.forget(output.state)

    @property
    def _head(self) -> Head | None:
        """What the commit replaces."""
        is_new = self._base is None or (self._since is not None and self._since.is_branch)
        return None if is_new or self._base is None else self._base.head

    @property
    def _base_position(self) -> int:
        return 0 if self._base is None or self._base.record is None else self._base.record.state.position

    @property
    def _state(self) -> SequenceState:
        """What the first answer leaves."""
        state = self._outputs[0].state
        assert state is not None
        return state


def new_sequence_id() -> str:
    return uuid.uuid4().hex

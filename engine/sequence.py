"""A sequence (one generation in flight, or one feed), what it starts from and what comes out of it.

`SequenceState` is everything that a session is, on the host; sessions and snapshots deal in it. `Sequence` is what is
asked of the engine together with how far it has come: the scheduler reads it, only the core writes it.
`SequenceOutput` is what one step has to say about one sequence.
"""

from array import array
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum

from atlas_model.state import State
from engine.errors import EmptyPrompt
from engine.sampling.logprobs import PromptTargets, TokenLogprob
from engine.sampling.sampling_params import SamplingParams
from engine.snapshots.memory_samples import NO_SAMPLES, MemorySamples
from engine.snapshots.tokens_digest import INITIAL_DIGEST, extend_digest

# Of a server that has no keys, and so knows nobody from anybody.
DEFAULT_TENANT = "default"


class Priority(StrEnum):
    """`interactive`: somebody waits for each token. `background`: documents and replays, which take what is left and a
    share that is always theirs."""

    INTERACTIVE = "interactive"
    BACKGROUND = "background"


class FinishReason(StrEnum):
    """`stop`: by `<end>` or a stop string, or all was fed. `length`: by max_tokens. `abort`: nobody listens any more.
    `error`: SequenceOutput.error says which."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SequenceState:
    """All that a session is when it rests. A value: nobody writes to its tensors.

    tensors: a State of one row on the CPU. Its identity tells the engine whether a slot still has the same bits.
    tokens_digest: hash chain over the ids that were fed.
    pending_token_ids: part of the conversation but not fed yet; fed first when the session goes on.
    memory_samples: what the memory was like on its way. The one thing here that the future does not depend on.
    """

    tensors: State
    tokens_digest: bytes
    pending_token_ids: tuple[int, ...] = ()
    memory_samples: MemorySamples = NO_SAMPLES

    @property
    def position(self) -> int:
        """Tokens fed since the session began, pending ones excluded."""
        return int(self.tensors.position[0])


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds so far. queue: until a slot was free; prefill: until the first token (of a feed: until all was fed);
    decode: from the first token on."""

    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    def __add__(self, other: "Timings") -> "Timings":
        return Timings(
            self.queue_seconds + other.queue_seconds,
            self.prefill_seconds + other.prefill_seconds,
            self.decode_seconds + other.decode_seconds,
        )


class Tier(StrEnum):
    """Where a committed session's state was found when it went on, the nearest first."""

    DEVICE = "device"
    HOST = "host"
    STORE = "store"


@dataclass(frozen=True, slots=True)
class Resume:
    """How a sequence's state came into its slot: from another row on the `device`, or from the `host`."""

    tier: Tier
    seconds: float


@dataclass(frozen=True, slots=True)
class SequenceOutput:
    """What one step produced for one sequence.

    text: printable from now on; never half a character, never the beginning of what may become a stop string.
    token_ids: sampled in this step, without `<end>`, and also when their text is held back or cut off.
    finish_reason: None while it goes on.
    state: after `stop` and `length` only: what a commit stores.
    fed_token_ids: with `state`, the ids that lead to it from the state that the sequence began with.
    error: with `error` always; with `abort` when the engine, not the caller, ended it.
    num_prompt_tokens: fed before the first sampled token, the state's pending ones included.
    num_generated_tokens: sampled so far, without `<end>`.
    logprobs: of those who ask, the tokens of the answer that are shown as a whole from now on, in their order: their
        bytes, and no others, make up the texts so far, but for an opening and for what a stop string has cut off the
        last one. No token is here that was hidden as a whole.
    prompt_logprobs: of those who ask, as soon as all of the prompt was fed: of each of its tokens, the state's pending
        ones excluded; None for one before which this sequence has fed nothing.
    resume: None before there was a slot, and for a sequence that starts from nothing.
    """

    sequence_id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    state: SequenceState | None = None
    error: Exception | None = None
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    timings: Timings = Timings()
    resume: Resume | None = None
    fed_token_ids: "array[int] | None" = None


class Sequence:
    """What is asked, and how far it has come.

    token_ids: the new ids; `state.pending_token_ids` are put before them here.
    params: None only feeds (an ingest): it ends with `stop` and nothing pending when all is fed.
    state: None is a session that was fed nothing.
    opening: where the answer begins with these bytes, they are fed and are no part of it.
    shares_state: others may start from this very state too, so that its row on the device is worth keeping.
    leaves_state: False when nobody will go on from where it ends: its last output has no state.
    earlier_token_ids: fed before these in the same call, by another sequence.
    prompt_logprobs: what the prompt's tokens are told with, when not `params` say so.
    next_prompt_token_id: comes after these in the same call, fed by another sequence, and is told with them.
    tenant, priority: whose turn it is on, and against whom (`scheduler`).
    Raises EmptyPrompt when there is nothing to feed.
    """

    def __init__(
        self,
        sequence_id: str,
        token_ids: Iterable[int],
        params: SamplingParams | None = None,
        state: SequenceState | None = None,
        *,
        shares_state: bool = False,
        leaves_state: bool = True,
        opening: bytes = b"",
        earlier_token_ids: Collection[int] = (),
        prompt_logprobs: int | None = None,
        next_prompt_token_id: int | None = None,
        tenant: str = DEFAULT_TENANT,
        priority: Priority = Priority.INTERACTIVE,
    ) -> None:
        self.sequence_id = sequence_id
        self.params = params
        self.state = state
        self.shares_state = shares_state
        self.leaves_state = leaves_state
        self.opening = opening
        self.earlier_token_ids = earlier_token_ids
        self.prompt_logprobs = params.prompt_logprobs if params and prompt_logprobs is None else prompt_logprobs
        self.tenant = tenant
        self.priority = priority
        pending = state.pending_token_ids if state is not None else ()
        self.num_pending = len(pending)
        self.prompt_token_ids = [*pending, *token_ids]
        self._next_prompt_token_ids = () if next_prompt_token_id is None else (next_prompt_token_id,)
        if not self.prompt_token_ids:
            raise EmptyPrompt("there is nothing to feed")

        # Progress. What `feed_first` was given is fed before anything is sampled; `next_token_id` is sampled and not
        # fed yet; `fed_token_ids` are what `position` and `tokens_digest` have gone on by since `state`.
        self.slot: int | None = None
        self.next_token_id: int | None = None
        self.generated_token_ids: list[int] = []
        self.fed_token_ids = array("I")
        self.position = state.position if state is not None else 0
        self.tokens_digest = state.tokens_digest if state is not None else INITIAL_DIGEST
        self.memory_samples = state.memory_samples if state is not None else NO_SAMPLES
        self.feed_first(self.prompt_token_ids)

    @property
    def is_prefilling(self) -> bool:
        return self._num_fed < len(self._to_feed)

    @property
    def num_unfed(self) -> int:
        """Ids that are fed before anything is sampled."""
        return len(self._to_feed) - self._num_fed

    def feed_first(self, token_ids: list[int]) -> None:
        """Makes `token_ids` what is fed before anything is sampled, in place of what is left of the last such list."""
        # An index into the list: taking a piece off the front of a long one would move all the rest.
        self._to_feed, self._num_fed = token_ids, 0

    def next_token_ids(self, num_tokens: int) -> list[int]:
        """The next ids to feed: up to `num_tokens` of the unfed ones, or the one that was sampled last."""
        if self.is_prefilling:
            return self._to_feed[self._num_fed : self._num_fed + num_tokens]
        assert self.next_token_id is not None
        return [self.next_token_id]

    def next_targets(self, num_tokens: int) -> PromptTargets | None:
        """What the prompt's tokens that come after the next `num_tokens` ones are to be told with; None when nobody
        asks."""
        if self.prompt_logprobs is None or self._to_feed is not self.prompt_token_ids:
            return None
        first, stop = max(self._num_fed + 1, self.num_pending), self._num_fed + num_tokens + 1
        token_ids = self.prompt_token_ids[first:stop]
        if stop > len(self.prompt_token_ids):
            token_ids += self._next_prompt_token_ids
        return PromptTargets(first - self._num_fed - 1, token_ids, self.prompt_logprobs) if token_ids else None

    def mark_fed(self, num_tokens: int) -> None:
        """Counts what `next_token_ids(num_tokens)` returned as read."""
        token_ids = self.next_token_ids(num_tokens)
        self.tokens_digest = extend_digest(self.tokens_digest, token_ids)
        self.fed_token_ids.extend(token_ids)
        self.position += len(token_ids)
        if self.is_prefilling:
            self._num_fed += len(token_ids)
        else:
            self.next_token_id = None

    def mark_unfed(self, position: int, tokens_digest: bytes) -> None:
        """Takes back what was fed after `position`, where the digest was `tokens_digest`."""
        del self.fed_token_ids[len(self.fed_token_ids) - (self.position - position) :]
        self.position, self.tokens_digest = position, tokens_digest

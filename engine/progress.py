"""How far one sequence has come, as the core alone needs to know it: its text, its clock, its way back.

The way back: while bytes are held that may become a stop string, the state from before the first held token must be
recoverable, because a memory cannot be rewound. At most two copies of it are kept, however long the hold moves on.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from atlas_model.state import State
from engine.device.state_pool import StatePool
from engine.sampling.adjustment import Adjustment
from engine.sampling.detokenizer import Detokenizer
from engine.sampling.logprobs import TokenLogprob
from engine.sampling.stopping import Cut, Stopping
from engine.sequence import FinishReason, Resume, Sequence, SequenceOutput, SequenceState, Timings


@dataclass(frozen=True, slots=True)
class StateCopy:
    """A sequence's state when `num_generated_tokens` of its sampled tokens were fed."""

    num_generated_tokens: int
    tensors: State
    tokens_digest: bytes
    position: int


class Progress:
    """One per sequence in the core, from `add` on. `stopping` is None for a sequence that only feeds."""

    def __init__(self, sequence: Sequence, stopping: Stopping | None, seed: int, now: float) -> None:
        self.sequence = sequence
        self.stopping = stopping
        self.seed = seed
        self.detokenizer = Detokenizer()
        # When not None, the sequence ends with `stop` as soon as all is fed, and leaves these pending.
        self.pending_after_feed: tuple[int, ...] | None = () if stopping is None else None
        # Made when it is first needed, of those who ask for one.
        self.adjustment: Adjustment | None = None
        self.resume: Resume | None = None
        # Of tokens that are not shown yet, in their order.
        self._logprobs: deque[TokenLogprob] = deque()
        self._num_told_tokens = 0
        # Before a session's first token there is nothing to tell it by, nor after a feed that left nothing pending.
        self._prompt_logprobs: tuple[TokenLogprob | None, ...] = () if sequence.num_pending else (None,)
        self._copies: list[StateCopy] = []
        self._added_at = now
        self._admitted_at: float | None = None
        self._prefilled_at: float | None = None

    @property
    def num_copies(self) -> int:
        return len(self._copies)

    def mark_admitted(self, now: float) -> float:
        """Returns the seconds since it was added."""
        self._admitted_at = now
        return now - self._added_at

    def mark_prefilled(self, now: float) -> None:
        """The first call counts."""
        if self._prefilled_at is None:
            self._prefilled_at = now

    def note_token(self, token_id: int, logprob: TokenLogprob | None) -> None:
        """The answer goes on with this token; told is what was asked for."""
        self.sequence.generated_token_ids.append(token_id)
        if self.adjustment is not None:
            self.adjustment.note(token_id)
        if logprob is not None:
            self._logprobs.append(logprob)

    def note_prompt(self, logprobs: Iterable[TokenLogprob]) -> None:
        """Those of the prompt's next tokens."""
        self._prompt_logprobs += tuple(logprobs)

    def timings(self, now: float) -> Timings:
        admitted_at = now if self._admitted_at is None else self._admitted_at
        prefilled_at = now if self._prefilled_at is None else self._prefilled_at
        return Timings(admitted_at - self._added_at, prefilled_at - admitted_at, now - prefilled_at)

    def keep_way_back(self, pool: StatePool) -> None:
        """Copies the state if it may have to be restored. To be called when a token was sampled and is not fed yet."""
        held = None if self.stopping is None else self.stopping.first_held_token
        if held is None:
            self._copies.clear()
            return
        while len(self._copies) > 1 and self._copies[1].num_generated_tokens <= held:
            del self._copies[0]
        if not self._copies or self._copies[-1].num_generated_tokens < held:
            sequence = self.sequence
            assert sequence.slot is not None
            num_fed = len(sequence.generated_token_ids) - 1
            tensors = pool.copy(sequence.slot)
            self._copies.append(StateCopy(num_fed, tensors, sequence.tokens_digest, sequence.position))

    def rewind(self, cut: Cut, pool: StatePool, encode: Callable[[str], list[int]]) -> None:
        """Goes back to a state that has read nothing of what the stop string hides, and leaves unfed what is visible
        beyond it, encoded anew where the cut goes through a token. The last token that was sampled is not fed yet."""
        sequence = self.sequence
        assert sequence.slot is not None
        num_fed = len(sequence.generated_token_ids) - 1
        if cut.num_kept_tokens < num_fed:
            copy = [copy for copy in self._copies if copy.num_generated_tokens <= cut.num_kept_tokens][-1]
            pool.load(sequence.slot, copy.tensors)
            sequence.mark_unfed(copy.position, copy.tokens_digest)
            num_fed = copy.num_generated_tokens
        kept = sequence.generated_token_ids[num_fed : cut.num_kept_tokens]
        sequence.feed_first([*kept, *encode(cut.visible.decode("utf-8"))])
        self._copies.clear()

    def output(
        self,
        now: float,
        text: str = "",
        token_ids: tuple[int, ...] = (),
        finish_reason: FinishReason | None = None,
        state: SequenceState | None = None,
        error: Exception | None = None,
    ) -> SequenceOutput:
        return SequenceOutput(
            self.sequence.sequence_id,
            text,
            token_ids,
            finish_reason,
            state,
            error,
            num_prompt_tokens=len(self.sequence.prompt_token_ids),
            num_generated_tokens=len(self.sequence.generated_token_ids),
            logprobs=self._newly_shown(),
            prompt_logprobs=self._whole_prompt_logprobs(),
            timings=self.timings(now),
            resume=self.resume,
            fed_token_ids=None if state is None else self.sequence.fed_token_ids,
        )

    def _newly_shown(self) -> tuple[TokenLogprob, ...]:
        if not self._logprobs:
            return ()
        assert self.stopping is not None
        num_shown = self.stopping.num_whole_tokens(self.detokenizer.num_held_bytes)
        num_new, self._num_told_tokens = num_shown - self._num_told_tokens, num_shown
        return tuple(self._logprobs.popleft() for _ in range(num_new))

    def _whole_prompt_logprobs(self) -> tuple[TokenLogprob | None, ...] | None:
        sequence = self.sequence
        is_asked = sequence.prompt_logprobs is not None
        is_prompt_fed = bool(sequence.generated_token_ids) or not sequence.is_prefilling
        return self._prompt_logprobs if is_asked and is_prompt_fed else None

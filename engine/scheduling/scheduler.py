"""Who is served when. Policy only: no tensor, no clock.

A step is one prefill batch or one decode batch of everything that decodes; when there is work of both kinds they
alternate, and beside those who read an answer a prefill batch is bounded: one of documents holds no more than it is
told to, so that a text of any length adds no more than that to the time between two tokens; a question may take a
longer step, for somebody waits for its first token.

Slots and prefill go to `interactive` sequences before `background` ones, which are never left out: one of them gets a
slot after at most one other while none has any, and `background_share` of the tokens while both kinds are prefilled. On
the other hand they never have more than half of the slots. Within a kind tenants share: a free slot goes to the tenant
that has the fewest, among those to the one that was given the fewest, and prefill to the one that was fed least
(`fair_share`); within a tenant, slots are first come, first served, and prefill takes turns. A slot is kept until its
sequence ends, which for a document is its next commit.

Pieces end where the memory's chunks do, as far as they can, and prefill batches hold pieces of similar length, which
keeps padding under a half; pieces that are long enough to fill the device go one by one.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from engine.config import EngineConfig
from engine.errors import QueueFull
from engine.scheduling.fair_share import FairShare
from engine.sequence import Priority, Sequence

# A row of so many tokens gives the products of a CPU enough to do; rows beside it cost padding and caches.
CPU_MAX_NUM_BATCHABLE_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Piece:
    """The next `num_tokens` tokens of a sequence."""

    sequence: Sequence
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step runs: prefill in chunk form, or decode, one token a sequence, in recurrent form.

    is_paced: a prefill of background sequences for which others wait with their next token.
    """

    is_prefill: bool
    pieces: tuple[Piece, ...]
    is_paced: bool = False

    @property
    def num_tokens(self) -> int:
        return sum(piece.num_tokens for piece in self.pieces)

    @property
    def num_padded_tokens(self) -> int:
        return len(self.pieces) * max(piece.num_tokens for piece in self.pieces)

    def rows(self) -> "tuple[Batch, ...]":
        """Each row as a batch of its own; nothing when there is only one."""
        if len(self.pieces) == 1:
            return ()
        return tuple(replace(self, pieces=(piece,)) for piece in self.pieces)

    def halves(self) -> "tuple[Batch, ...]":
        """What needs less memory at a time: the halves of the rows; of one row the first half of its tokens, for the
        rest comes in later steps; nothing of one token."""
        middle = len(self.pieces) // 2
        if middle > 0:
            return replace(self, pieces=self.pieces[:middle]), replace(self, pieces=self.pieces[middle:])
        (piece,) = self.pieces
        if piece.num_tokens == 1:
            return ()
        return (replace(self, pieces=(Piece(piece.sequence, piece.num_tokens // 2),)),)


class Scheduler:
    """memory_chunk_size: where pieces should end."""

    def __init__(self, config: EngineConfig, memory_chunk_size: int = 1) -> None:
        self._config = config
        self._memory_chunk_size = memory_chunk_size
        self._max_num_batchable_tokens = config.max_num_batchable_tokens or (
            CPU_MAX_NUM_BATCHABLE_TOKENS if config.device.startswith("cpu") else config.max_num_piece_tokens
        )
        self._max_num_background = max(1, config.max_num_sequences // 2)
        # In the order in which they came.
        self._waiting: dict[str, Sequence] = {}
        # In the order in which they were last prefilled.
        self._running: dict[str, Sequence] = {}
        self._last_was_prefill = False
        self._last_admitted = Priority.INTERACTIVE
        self._slot_shares = {priority: FairShare() for priority in Priority}
        self._token_shares = {priority: FairShare() for priority in Priority}
        # Tokens that background sequences are behind their share.
        self._background_debt = 0.0

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        return tuple(self._waiting.values())

    @property
    def running(self) -> tuple[Sequence, ...]:
        return tuple(self._running.values())

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_background_waiting(self) -> int:
        return _num_background(self._waiting.values())

    @property
    def num_background_running(self) -> int:
        return _num_background(self._running.values())

    def add(self, sequence: Sequence) -> None:
        """Queues the sequence. Raises QueueFull when neither a slot nor a place in the queue is left for it."""
        num_free = self._config.max_num_sequences - len(self._running)
        if len(self._waiting) >= self._config.max_num_waiting + num_free:
            raise QueueFull(f"{len(self._waiting)} requests are waiting already")
        self._waiting[sequence.sequence_id] = sequence

    def admit(self) -> list[Sequence]:
        """Moves those who wait to running while there are slots for them; returns them."""
        admitted = []
        while len(self._running) < self._config.max_num_sequences and (sequence := self._next_to_admit()) is not None:
            wanting = {each.tenant for each in self._waiting.values() if each.priority is sequence.priority}
            self._slot_shares[sequence.priority].serve([(sequence.tenant, 1)], wanting)
            del self._waiting[sequence.sequence_id]
            self._running[sequence.sequence_id] = sequence
            self._last_admitted = sequence.priority
            admitted.append(sequence)
        return admitted

    def remove(self, sequence: Sequence) -> None:
        """Forgets the sequence, whether it waits or runs."""
        if self._running.pop(sequence.sequence_id, None) is None:
            del self._waiting[sequence.sequence_id]

    def schedule(self, max_num_paced_tokens: int | None = None) -> Batch | None:
        """The next step's batch; None when nothing runs.

        max_num_paced_tokens: the prefill budget of background sequences while others decode, where that is less than
        the configured one.
        """
        prefilling = [sequence for sequence in self._running.values() if sequence.is_prefilling]
        decoding = [sequence for sequence in self._running.values() if not sequence.is_prefilling]
        if decoding and (self._last_was_prefill or not prefilling):
            self._last_was_prefill = False
            return Batch(is_prefill=False, pieces=tuple(Piece(sequence, 1) for sequence in decoding))
        if not prefilling:
            return None
        self._last_was_prefill = True
        budgets = dict.fromkeys(Priority, self._config.max_num_batched_tokens)
        if decoding:
            budgets = dict.fromkeys(
                Priority, min(budgets[Priority.BACKGROUND], self._config.max_num_interleaved_tokens)
            )
            if max_num_paced_tokens is not None:
                budgets[Priority.BACKGROUND] = min(budgets[Priority.BACKGROUND], max_num_paced_tokens)
        longest = self._config.max_num_piece_tokens
        in_turn = self._in_turn(prefilling, min(longest, budgets[Priority.BACKGROUND]))
        kind = in_turn[0].priority
        pieces = self._choose_pieces(in_turn, min(longest, budgets[kind]), budgets[kind])
        self._count(pieces, prefilling)
        return Batch(is_prefill=True, pieces=pieces, is_paced=bool(decoding) and kind is Priority.BACKGROUND)

    def _next_to_admit(self) -> Sequence | None:
        """The oldest of the tenant whose turn it is, of the kind whose turn it is; None when nobody may have a slot."""
        num_background = self.num_background_running
        kinds = {sequence.priority for sequence in self._waiting.values()}
        if num_background >= self._max_num_background:
            kinds.discard(Priority.BACKGROUND)
        if not kinds:
            return None
        kind = Priority.INTERACTIVE if Priority.INTERACTIVE in kinds else Priority.BACKGROUND
        is_left_out = num_background == 0 and self._last_admitted is not Priority.BACKGROUND
        if Priority.BACKGROUND in kinds and is_left_out:
            kind = Priority.BACKGROUND
        num_slots = Counter(sequence.tenant for sequence in self._running.values() if sequence.priority is kind)
        start = self._slot_shares[kind].start
        candidates = (sequence for sequence in self._waiting.values() if sequence.priority is kind)
        return min(candidates, key=lambda sequence: (num_slots[sequence.tenant], start(sequence.tenant)))

    def _in_turn(self, prefilling: list[Sequence], limit: int) -> list[Sequence]:
        """Those of the kind whose turn it is, the first to be served first. `limit`: a background sequence's longest
        piece."""
        kind = Priority.BACKGROUND if self._background_debt >= limit else Priority.INTERACTIVE
        of_kind = [sequence for sequence in prefilling if sequence.priority is kind] or prefilling
        # Sorting is stable: within a tenant they stay in the order in which they were last prefilled.
        return sorted(of_kind, key=lambda sequence: self._token_shares[sequence.priority].start(sequence.tenant))

    def _choose_pieces(self, in_turn: list[Sequence], limit: int, budget: int) -> tuple[Piece, ...]:
        """The first sequence's piece, and those of the others that are at most twice and at least half as long as any
        other, none longer than may share a batch, while rows times longest piece fit the budget."""
        shortest = longest = self._piece_num_tokens(in_turn[0], limit)
        pieces = [Piece(in_turn[0], longest)]
        for sequence in in_turn[1:]:
            num_tokens = self._piece_num_tokens(sequence, limit)
            new_shortest, new_longest = min(shortest, num_tokens), max(longest, num_tokens)
            is_similar = new_longest <= min(2 * new_shortest, self._max_num_batchable_tokens)
            if is_similar and (len(pieces) + 1) * new_longest <= budget:
                shortest, longest = new_shortest, new_longest
                pieces.append(Piece(sequence, num_tokens))
        return tuple(pieces)

    def _piece_num_tokens(self, sequence: Sequence, limit: int) -> int:
        """All that is left, else up to the last border of the memory's chunks within the limit, else the limit."""
        if sequence.num_unfed <= limit:
            return sequence.num_unfed
        num_beyond_border = (sequence.position + limit) % self._memory_chunk_size
        return limit - num_beyond_border if num_beyond_border < limit else limit

    def _count(self, pieces: tuple[Piece, ...], prefilling: list[Sequence]) -> None:
        """Notes what was given to whom, for who is next."""
        kind = pieces[0].sequence.priority
        wanting = {sequence.tenant for sequence in prefilling if sequence.priority is kind}
        self._token_shares[kind].serve([(piece.sequence.tenant, piece.num_tokens) for piece in pieces], wanting)
        if len({sequence.priority for sequence in prefilling}) == 1:
            self._background_debt = 0.0
        else:
            share = self._config.background_share - (kind is Priority.BACKGROUND)
            self._background_debt += share * sum(piece.num_tokens for piece in pieces)
        for piece in pieces:
            del self._running[piece.sequence.sequence_id]
            self._running[piece.sequence.sequence_id] = piece.sequence


def _num_background(sequences: Iterable[Sequence]) -> int:
    return sum(sequence.priority is Priority.BACKGROUND for sequence in sequences)

"""Who is served when. Policy only: no tensor, no clock.

First come, first served for slots. A step is one prefill batch or one decode batch of everything that decodes; when
there is work of both kinds they alternate, so a long document never starves those who read an answer, and prefill takes
turns among its own, so it does not starve a short question either. Prefill batches hold pieces of similar length, which
keeps padding under a half.
"""

from collections import deque
from dataclasses import dataclass

from engine.config import EngineConfig
from engine.errors import QueueFull
from engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Piece:
    """The next `num_tokens` tokens of a sequence."""

    sequence: Sequence
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step runs: prefill in chunk form, or decode, one token a sequence, in recurrent form."""

    is_prefill: bool
    pieces: tuple[Piece, ...]

    @property
    def num_tokens(self) -> int:
        return sum(piece.num_tokens for piece in self.pieces)

    def rows(self) -> "tuple[Batch, ...]":
        """Each row as a batch of its own; nothing when there is only one."""
        if len(self.pieces) == 1:
            return ()
        return tuple(Batch(self.is_prefill, (piece,)) for piece in self.pieces)

    def halves(self) -> "tuple[Batch, ...]":
        """What needs less memory at a time: the halves of the rows; of one row the first half of its tokens, for the
        rest comes in later steps; nothing of one token."""
        middle = len(self.pieces) // 2
        if middle > 0:
            return Batch(self.is_prefill, self.pieces[:middle]), Batch(self.is_prefill, self.pieces[middle:])
        (piece,) = self.pieces
        if piece.num_tokens == 1:
            return ()
        return (Batch(self.is_prefill, (Piece(piece.sequence, piece.num_tokens // 2),)),)


class Scheduler:
    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._waiting: deque[Sequence] = deque()
        # In the order in which they were last prefilled.
        self._running: dict[str, Sequence] = {}
        self._last_was_prefill = False

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        return tuple(self._waiting)

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

    def add(self, sequence: Sequence) -> None:
        """Queues the sequence. Raises QueueFull when neither a slot nor a place in the queue is left for it."""
        num_free = self._config.max_num_sequences - len(self._running)
        if len(self._waiting) >= self._config.max_num_waiting + num_free:
            raise QueueFull(f"{len(self._waiting)} requests are waiting already")
        self._waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Moves those who wait to running while there are slots; returns them, oldest first."""
        admitted = []
        while self._waiting and len(self._running) < self._config.max_num_sequences:
            sequence = self._waiting.popleft()
            self._running[sequence.sequence_id] = sequence
            admitted.append(sequence)
        return admitted

    def remove(self, sequence: Sequence) -> None:
        """Forgets the sequence, whether it waits or runs."""
        if self._running.pop(sequence.sequence_id, None) is None:
            self._waiting.remove(sequence)

    def schedule(self) -> Batch | None:
        """The next step's batch; None when nothing runs."""
        prefilling = [sequence for sequence in self._running.values() if sequence.is_prefilling]
        decoding = [sequence for sequence in self._running.values() if not sequence.is_prefilling]
        if decoding and (self._last_was_prefill or not prefilling):
            self._last_was_prefill = False
            # In the order of their slots, because rows that are neighbours need not be copied together.
            decoding.sort(key=lambda sequence: -1 if sequence.slot is None else sequence.slot)
            return Batch(is_prefill=False, pieces=tuple(Piece(sequence, 1) for sequence in decoding))
        if not prefilling:
            return None
        self._last_was_prefill = True
        config = self._config
        budget = config.max_num_interleaved_tokens if decoding else config.max_num_batched_tokens
        pieces = self._choose_pieces(prefilling, budget)
        for piece in pieces:
            del self._running[piece.sequence.sequence_id]
            self._running[piece.sequence.sequence_id] = piece.sequence
        return Batch(is_prefill=True, pieces=pieces)

    def _choose_pieces(self, prefilling: list[Sequence], budget: int) -> tuple[Piece, ...]:
        """The first sequence's piece, and those of the others that are at most twice and at least half as long as any
        other while rows times longest piece fit the budget."""
        limit = min(self._config.max_num_piece_tokens, budget)
        pieces: list[Piece] = []
        shortest = longest = min(len(prefilling[0].unfed), limit)
        for sequence in prefilling:
            num_tokens = min(len(sequence.unfed), limit)
            new_shortest, new_longest = min(shortest, num_tokens), max(longest, num_tokens)
            if new_longest <= 2 * new_shortest and (len(pieces) + 1) * new_longest <= budget:
                shortest, longest = new_shortest, new_longest
                pieces.append(Piece(sequence, num_tokens))
        return tuple(pieces)

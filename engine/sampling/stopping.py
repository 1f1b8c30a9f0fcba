"""When a generation ends, decided before the token that ends it is fed; and which of its bytes may be shown.

A memory cannot be rewound, so the question is asked between sampling and feeding. Stop strings are looked for in the
bytes of the whole answer, across token borders, as if the bytes came one at a time: the first that is complete ends it.
Bytes that may be the beginning of one are held back until they cannot be any more. A stop token ends an answer as a
stop string would that is all of it. What happens to the state is the core's affair; this file knows no tensors.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from engine.sampling.sampling_params import SamplingParams
from engine.sequence import FinishReason


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a stop string cut the answer: the first `num_kept_tokens` sampled tokens are visible as a whole, and
    `visible` are the bytes of the next one that stand before the stop string, an opening of the answer included."""

    num_kept_tokens: int
    visible: bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """About one sampled token. `released`: bytes that can be shown now. `cut` is set when a stop string matched."""

    released: bytes
    finish_reason: FinishReason | None = None
    cut: Cut | None = None


class Stopping:
    """One per sequence. `token_bytes[id]` are a token's exact bytes; `opening`, where an answer begins with it, is fed
    like the rest of its first token and is no part of the answer."""

    def __init__(
        self, params: SamplingParams, end_token_id: int, token_bytes: Sequence[bytes], opening: bytes = b""
    ) -> None:
        self._params = params
        self._stops = [stop.encode("utf-8") for stop in params.stop]
        self._stop_token_ids = frozenset(params.stop_token_ids)
        self._end_token_id = end_token_id
        self._token_bytes = token_bytes
        self._opening = opening
        self._answer = bytearray()
        self._num_released_bytes = 0
        self._has_opening = False
        # Where each token begins in the answer.
        self._token_starts: list[int] = []

    @property
    def can_end(self) -> bool:
        """Whether the next token may be `<end>`."""
        return not self._params.ignore_eos and len(self._token_starts) >= self._params.min_tokens

    @property
    def first_held_token(self) -> int | None:
        """The index, among the sampled tokens, of the first that has bytes held back; None when nothing is held."""
        if self._num_released_bytes == len(self._answer):
            return None
        return self._token_at(self._num_released_bytes)

    def num_whole_tokens(self, num_unshown_bytes: int = 0) -> int:
        """How many tokens have all of their bytes among those released, but for the last `num_unshown_bytes`."""
        num_shown = self._num_released_bytes - num_unshown_bytes
        return len(self._token_starts) if num_shown == len(self._answer) else self._token_at(num_shown)

    def accept(self, token_id: int) -> Verdict:
        """Judges the token that was just sampled and is not fed yet."""
        if token_id == self._end_token_id:
            return Verdict(self.release_all(), FinishReason.STOP)
        if token_id in self._stop_token_ids and len(self._token_starts) >= self._params.min_tokens:
            return Verdict(self.release_all(), FinishReason.STOP, Cut(len(self._token_starts), b""))
        self._token_starts.append(len(self._answer))
        self._answer += self._bytes_of(token_id)
        if len(self._token_starts) < self._params.min_tokens:
            return Verdict(self.release_all())

        match_start = self._find_stop()
        if match_start is not None:
            first_hidden = self._token_at(match_start)
            visible = bytes(self._answer[self._token_starts[first_hidden] : match_start])
            # What is hidden must not be released later either.
            del self._answer[match_start:]
            del self._token_starts[first_hidden + (visible != b"") :]
            if visible and first_hidden == 0 and self._has_opening:
                visible = self._opening + visible
            return Verdict(self.release_all(), FinishReason.STOP, Cut(first_hidden, visible))
        if len(self._token_starts) >= self._params.max_tokens:
            return Verdict(self.release_all(), FinishReason.LENGTH)
        return Verdict(self._release_up_to(len(self._answer) - self._num_bytes_to_hold()))

    def release_all(self) -> bytes:
        """Everything that is still held back."""
        return self._release_up_to(len(self._answer))

    def _bytes_of(self, token_id: int) -> bytes:
        """What the token that was just accepted adds to the answer."""
        data = self._token_bytes[token_id]
        if len(self._token_starts) > 1 or not self._opening:
            return data
        self._has_opening = data.startswith(self._opening)
        return data.removeprefix(self._opening)

    def _release_up_to(self, end: int) -> bytes:
        released = bytes(self._answer[self._num_released_bytes : end])
        self._num_released_bytes = end
        return released

    def _token_at(self, offset: int) -> int:
        return bisect_right(self._token_starts, offset) - 1

    def _find_stop(self) -> int | None:
        """Where the stop string begins that is complete first; of several with one end, the longest."""
        best: tuple[int, int] | None = None
        for stop in self._stops:
            start = self._answer.find(stop, self._num_released_bytes)
            if start >= 0 and (best is None or (start + len(stop), start) < best):
                best = (start + len(stop), start)
        return None if best is None else best[1]

    def _num_bytes_to_hold(self) -> int:
        """The length of the longest end of the answer that is a proper beginning of a stop string."""
        num_unreleased = len(self._answer) - self._num_released_bytes
        return max((self._overlap(stop, num_unreleased) for stop in self._stops), default=0)

    def _overlap(self, stop: bytes, num_unreleased: int) -> int:
        for length in range(min(len(stop) - 1, num_unreleased), 0, -1):
            if self._answer.endswith(stop[:length]):
                return length
        return 0

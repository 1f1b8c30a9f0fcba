"""How many tokens a prefill step may hold if it must not take longer than so many seconds. The clock is the core's.

A step costs something before its first token, and what a token costs depends on the machine and on who else uses it, so
the number is found by trying: it shrinks at once after a step that took too long, and grows slowly.
"""

# Fewer take hardly less time, because a step has a price of its own.
MIN_NUM_TOKENS = 16
INITIAL_NUM_TOKENS = 64
MAX_GROWTH = 1.05
MAX_SHRINKAGE = 0.5


class PrefillPace:
    """`max_seconds`: what a step may take, unless it holds MIN_NUM_TOKENS or less. `max_num_tokens`: what it may hold,
    however fast it is."""

    def __init__(self, max_seconds: float, max_num_tokens: int) -> None:
        self._max_seconds = max_seconds
        self._max_num_tokens = max_num_tokens
        self._num_tokens = self._bounded(INITIAL_NUM_TOKENS)

    @property
    def num_tokens(self) -> int:
        """What the next step may hold, padding included."""
        return int(self._num_tokens)

    def observe(self, num_tokens: int, seconds: float) -> None:
        """One step of `num_tokens`, padding included, took `seconds`."""
        ratio = self._max_seconds / max(seconds, 1e-9)
        if ratio < 1:
            self._num_tokens = self._bounded(min(self._num_tokens, num_tokens) * max(ratio, MAX_SHRINKAGE))
        else:
            # A step may hold much less than it might, as its pieces end where chunks do. So many tokens would take the
            # time if its own price were the tokens' too: no more than so many are tried.
            fitting = num_tokens * ratio
            self._num_tokens = self._bounded(max(self._num_tokens, min(self._num_tokens * MAX_GROWTH, fitting)))

    def _bounded(self, num_tokens: float) -> float:
        return min(max(num_tokens, MIN_NUM_TOKENS), self._max_num_tokens)

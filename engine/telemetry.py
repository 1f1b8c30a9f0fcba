"""Plain numbers about the engine, for whoever publishes them. No metric library here."""

from bisect import bisect_left
from dataclasses import dataclass

# Upper bounds of the histogram of tokens per step; the last count is of everything above.
ITERATION_TOKENS_BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """`..._total` grow for ever; the rest is now.

    prompt_tokens_total: fed by prefill. generation_tokens_total: sampled, `<end>` excluded.
    iteration_tokens_counts: steps by the tokens that they fed, one count per bound and one for the rest;
    iteration_tokens_total is their sum.
    """

    num_running: int
    num_waiting: int
    num_slots: int
    num_slots_in_use: int
    prompt_tokens_total: int
    generation_tokens_total: int
    iteration_tokens_total: int
    iteration_tokens_counts: tuple[int, ...]


class Counters:
    """What the core counts as it goes."""

    def __init__(self) -> None:
        self.prompt_tokens_total = 0
        self.generation_tokens_total = 0
        self.iteration_tokens_total = 0
        self.iteration_tokens_counts = [0] * (len(ITERATION_TOKENS_BOUNDS) + 1)

    def count_step(self, num_tokens: int, is_prefill: bool) -> None:
        self.iteration_tokens_total += num_tokens
        self.iteration_tokens_counts[bisect_left(ITERATION_TOKENS_BOUNDS, num_tokens)] += 1
        if is_prefill:
            self.prompt_tokens_total += num_tokens

"""Plain numbers about the engine, for whoever publishes them. No metric library here."""

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

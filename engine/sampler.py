"""From logits to token ids.

Counter-based: the draw for a token is a hash of the sequence's seed and the token's position in the session, so it is
the same alone and in a batch, on every device, and after a resume. One uniform a token goes through the inverse of the
filtered distribution, its tokens sorted by probability, so that a logit's last bits rarely matter. Logits are processed
in float64. Seeds and positions come from the core.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.sampling_params import SamplingParams

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def splitmix64(value: int) -> int:
    """One output of the SplitMix64 generator (Steele, Lea and Flood 2014) whose state is `value`: a bijection of 64-bit
    integers that changes half of the bits on average when one changes."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def uniform(seed: int, position: int) -> float:
    """A float64 in [0, 1), uniform over positions and over seeds."""
    return (splitmix64(splitmix64(seed & _MASK) ^ position) >> 11) * 2.0**-53


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one of several answers to a prompt: the first has the given one, the others hash it with their
    number."""
    return seed if choice == 0 else splitmix64(splitmix64(seed & _MASK) ^ choice)


@dataclass(frozen=True, slots=True)
class Draw:
    """What one row of the batch asks for. `position`: tokens fed before the one that is drawn."""

    params: SamplingParams
    seed: int
    position: int
    can_end: bool


class Sampler:
    """`silent_token_ids` are never sampled: they write nothing and mean nothing in an answer (a role, an unused id).
    `end_token_id` is sampled only in rows that can end."""

    def __init__(
        self, vocab_size: int, end_token_id: int, silent_token_ids: Sequence[int], device: torch.device
    ) -> None:
        self._end_token_id = end_token_id
        # bool [V]
        self._is_silent = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self._is_silent[list(silent_token_ids)] = True
        self._is_silent[end_token_id] = False

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> list[int | None]:
        """logits [B, V] and one draw a row -> one token id a row, None where the row's logits are not finite."""
        is_finite: list[bool] = logits.isfinite().all(dim=1).tolist()
        # The rows are filtered by -inf below, so the input must stay as it is.
        scores = logits.double().masked_fill(self._is_silent, -torch.inf)
        endless = [row for row, draw in enumerate(draws) if not draw.can_end]
        scores[endless, self._end_token_id] = -torch.inf

        token_ids: list[int] = scores.argmax(dim=1).tolist()
        random = [row for row, draw in enumerate(draws) if is_finite[row] and not draw.params.is_greedy]
        if random:
            drawn = _draw(scores[random], [draws[row] for row in random])
            for row, token_id in zip(random, drawn, strict=True):
                token_ids[row] = token_id
        return [token_id if is_finite[row] else None for row, token_id in enumerate(token_ids)]


def _draw(scores: Tensor, draws: Sequence[Draw]) -> list[int]:
    """scores float64 [B, V] -> token ids by temperature, then top-k, then top-p, then the inverse of what is left."""
    vocab_size = scores.shape[1]

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=scores.device)[:, None]

    temperature = column([draw.params.temperature for draw in draws])
    top_k = column([vocab_size if draw.params.top_k is None else draw.params.top_k for draw in draws])
    top_p = column([draw.params.top_p for draw in draws])
    uniforms = column([uniform(draw.seed, draw.position) for draw in draws])

    scores, order = scores.sort(dim=1, descending=True, stable=True)
    # The maximum is taken off first, so that a tiny temperature gives 0 and -inf and never inf - inf.
    probabilities = ((scores - scores[:, :1]) / temperature).softmax(dim=1)
    rank = torch.arange(vocab_size, device=scores.device)
    probabilities = probabilities.masked_fill(rank >= top_k, 0.0)
    probabilities = probabilities / probabilities.sum(dim=1, keepdim=True)
    mass_before = probabilities.cumsum(dim=1) - probabilities
    probabilities = probabilities.masked_fill(mass_before >= top_p, 0.0)
    cumulative = probabilities.cumsum(dim=1)
    index = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    # Rounding may leave the product at the total: then the last token that has any probability is meant.
    last = (probabilities > 0).sum(dim=1, keepdim=True) - 1
    drawn: list[int] = order.gather(1, torch.minimum(index, last))[:, 0].tolist()
    return drawn

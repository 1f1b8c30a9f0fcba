"""From logits to token ids.

Counter-based: the draw for a token is a hash of the sequence's seed and the token's position in the session, so it is
the same alone and in a batch, on every device, and after a resume. One uniform a token goes through the inverse of the
filtered distribution, its tokens in the order of their probabilities, or of their ids where nothing is filtered; a
logit's last bits rarely matter. Probabilities are float64. Seeds and positions come from the core.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atlas_model.upload import upload
from engine.sampling.adjustment import Adjustment, adjusted
from engine.sampling.binned_ranking import BinnedRanking
from engine.sampling.inverse import draw_unfiltered
from engine.sampling.logprobs import TokenLogprob, packed_logprobs, unpacked_logprob
from engine.sampling.ranking import Ranking, SortedRanking
from engine.sampling.sampling_params import SamplingParams

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15

_Pick = Callable[[Tensor, Sequence["Draw"]], Tensor]

_NOT_FINITE = -1
# On a CPU, rows of so many scores together stay in the nearest caches from pass to pass.
_NUM_CACHED_SCORES = 2**17
# There so few are sorted sooner than they are counted into bins.
_MAX_NUM_SORTED_ROWS = 2


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
    """What one row of the batch asks for. `position`: tokens fed before the one that is drawn. `adjustment`: of those
    whose `params` ask for one."""

    params: SamplingParams
    seed: int
    position: int
    can_end: bool
    adjustment: Adjustment | None = None


@dataclass(frozen=True, slots=True)
class Sampled:
    """One token id a row, None where its logits are not finite; and of the rows that ask, its log-probability."""

    token_ids: list[int | None]
    logprobs: Mapping[int, TokenLogprob]


class Sampler:
    """`silent_token_ids` are never sampled: they write nothing and mean nothing in an answer (a role, an unused id).
    `end_token_id` is sampled only in rows that can end."""

    def __init__(
        self, vocab_size: int, end_token_id: int, silent_token_ids: Sequence[int], device: torch.device
    ) -> None:
        self._end_token_id = end_token_id
        # [V]: 0, or -inf for what is never sampled.
        self._penalty = torch.zeros(vocab_size, device=device)
        self._penalty[list(silent_token_ids)] = -torch.inf
        self._penalty[end_token_id] = 0.0

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> Sampled:
        """logits [B, V] and one draw a row -> one token a row."""
        drawn = self._token_ids(logits, draws)
        asking = [row for row, draw in enumerate(draws) if draw.params.logprobs is not None]
        if not asking:
            return Sampled(_or_none(drawn.tolist()), {})
        rows = upload(asking, torch.int64, logits.device)
        num_top = max(draws[row].params.logprobs or 0 for row in asking)
        # The token of a row that is not finite is none.
        of_them = drawn.index_select(0, rows).clamp(min=0)
        packed = packed_logprobs(logits.index_select(0, rows), of_them, num_top)
        # All at once, because the host waits for each: a float64 holds any id.
        numbers = torch.cat([drawn.double(), packed.flatten()]).tolist()
        token_ids = _or_none([int(number) for number in numbers[: len(draws)]])
        width = packed.shape[1]
        logprobs = {}
        for start, row in zip(range(len(draws), len(numbers), width), asking, strict=True):
            token_id = token_ids[row]
            if token_id is not None:
                row_numbers = numbers[start : start + width]
                logprobs[row] = unpacked_logprob(token_id, row_numbers, draws[row].params.logprobs or 0)
        return Sampled(token_ids, logprobs)

    def _token_ids(self, logits: Tensor, draws: Sequence[Draw]) -> Tensor:
        """int64 [B]; _NOT_FINITE where the row's logits are not finite."""
        is_finite = logits.amin(dim=1).isfinite() & logits.amax(dim=1).isfinite()
        scores = _adjusted(logits, draws) + self._penalty
        if not all(draw.can_end for draw in draws):
            is_endless = upload([not draw.can_end for draw in draws], torch.bool, scores.device)
            scores[:, self._end_token_id].masked_fill_(is_endless, -torch.inf)

        return _pick(scores, draws).where(is_finite, _NOT_FINITE)


def _adjusted(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    adjustments = {row: draw.adjustment for row, draw in enumerate(draws) if draw.adjustment is not None}
    if not adjustments:
        return logits
    rows = upload(list(adjustments), torch.int64, logits.device)
    return logits.index_copy(0, rows, adjusted(logits.index_select(0, rows), list(adjustments.values())))


def _pick(scores: Tensor, draws: Sequence[Draw]) -> Tensor:
    """scores [B, V] -> token ids int64 [B]. On a CPU some rows at a time."""
    size = max(1, _NUM_CACHED_SCORES // scores.shape[1]) if scores.device.type == "cpu" else len(draws)
    if len(draws) <= size:
        return _pick_by_kind(scores, draws)
    parts = zip(scores.split(size), (draws[start : start + size] for start in range(0, len(draws), size)), strict=True)
    return torch.cat([_pick_by_kind(some, their_draws) for some, their_draws in parts])


def _pick_by_kind(scores: Tensor, draws: Sequence[Draw]) -> Tensor:
    rows_of: dict[_Pick, list[int]] = {}
    for row, draw in enumerate(draws):
        rows_of.setdefault(_kind(draw, scores.shape[1]), []).append(row)
    if len(rows_of) == 1:
        (pick,) = rows_of
        return pick(scores, draws)
    token_ids = torch.empty(len(draws), dtype=torch.int64, device=scores.device)
    for pick, rows in rows_of.items():
        places = upload(rows, torch.int64, scores.device)
        token_ids.index_copy_(0, places, pick(scores.index_select(0, places), [draws[row] for row in rows]))
    return token_ids


def _kind(draw: Draw, vocab_size: int) -> _Pick:
    params = draw.params
    if params.is_greedy:
        return _most_likely
    cuts = params.top_p < 1 or params.min_p > 0 or (params.top_k or vocab_size) < vocab_size
    return _draw_of_some if cuts else _draw_of_all


def _most_likely(scores: Tensor, draws: Sequence[Draw]) -> Tensor:
    return scores.argmax(dim=1)


def _draw_of_all(scores: Tensor, draws: Sequence[Draw]) -> Tensor:
    numbers = [(draw.params.temperature, uniform(draw.seed, draw.position)) for draw in draws]
    temperature, uniforms = upload(numbers, torch.float64, scores.device).split(1, dim=1)
    return draw_unfiltered(scores, temperature, uniforms)


def _draw_of_some(scores: Tensor, draws: Sequence[Draw]) -> Tensor:
    """By temperature, then min-p, top-k and top-p, then the inverse of what is left."""
    vocab_size = scores.shape[1]
    settings = upload([_numbers(draw, vocab_size) for draw in draws], torch.float64, scores.device)
    temperature, top_k, top_p, min_p, uniforms = settings.unbind(dim=1)
    sorts = scores.device.type != "cpu" or len(draws) <= _MAX_NUM_SORTED_ROWS
    ranking: Ranking = (SortedRanking if sorts else BinnedRanking)(scores, temperature[:, None])
    kept = ranking.total
    cut = [row for row, draw in enumerate(draws) if (draw.params.top_k or vocab_size) < vocab_size or draw.params.min_p]
    if cut:
        rows = upload(cut, torch.int64, scores.device)
        num_tokens = top_k.index_select(0, rows).long().clamp(max=vocab_size)
        if any(draw.params.min_p for draw in draws):
            num_tokens = num_tokens.minimum(ranking.num_heavier(min_p.index_select(0, rows), rows)).clamp(min=1)
        kept = kept.index_copy(0, rows, ranking.mass_of_first(num_tokens, rows))
    nucleus = [row for row, draw in enumerate(draws) if draw.params.top_p < 1]
    if nucleus:
        rows = upload(nucleus, torch.int64, scores.device)
        kept = kept.index_copy(0, rows, ranking.mass_reaching((top_p * kept).index_select(0, rows), rows))
    # Rounding may leave the product at the mass, which the last token completes.
    return ranking.token_beyond((uniforms * kept).minimum(kept.nextafter(torch.zeros_like(kept))))


def _numbers(draw: Draw, vocab_size: int) -> tuple[float, float, float, float, float]:
    params = draw.params
    drawn = uniform(draw.seed, draw.position)
    return params.temperature, params.top_k or vocab_size, params.top_p, params.min_p, drawn


def _or_none(token_ids: list[int]) -> list[int | None]:
    return [None if token_id == _NOT_FINITE else token_id for token_id in token_ids]

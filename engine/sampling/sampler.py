"""From logits to token ids.

Counter-based: the draw for a token is a hash of the sequence's seed and the token's position in the session, so it is
the same alone and in a batch, on every device, and after a resume. One uniform a token goes through the inverse of the
filtered distribution, its tokens sorted by probability, so that a logit's last bits rarely matter. Probabilities are
float64. Seeds and positions come from the core.

Sorting a vocabulary costs far more than finding its most likely tokens, and most draws are among those: a row is sorted
whole only when what it draws cannot be told from them. Both give the same token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atlas_model.upload import upload
from engine.sampling.adjustment import Adjustment, adjusted
from engine.sampling.logprobs import TokenLogprob, packed_logprobs, unpacked_logprob
from engine.sampling.ranking import ranked
from engine.sampling.sampling_params import SamplingParams

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15

# How many of the most likely tokens are looked at first, and then.
_NUM_CANDIDATES = (64, 512)
_UNDECIDED, _NOT_FINITE = -1, -2
_NUM_CACHED_ROWS = 16


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
        self._stages = (*(number for number in _NUM_CANDIDATES if number < vocab_size), vocab_size)

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> Sampled:
        """logits [B, V] and one draw a row -> one token a row."""
        token_ids = self._token_ids(logits, draws)
        return Sampled(token_ids, _logprobs(logits, token_ids, draws))

    def _token_ids(self, logits: Tensor, draws: Sequence[Draw]) -> list[int | None]:
        is_finite = logits.amin(dim=1).isfinite() & logits.amax(dim=1).isfinite()
        scores = _adjusted(logits, draws) + self._penalty
        if not all(draw.can_end for draw in draws):
            is_endless = upload([not draw.can_end for draw in draws], torch.bool, scores.device)
            scores[:, self._end_token_id].masked_fill_(is_endless, -torch.inf)

        random = [row for row, draw in enumerate(draws) if not draw.params.is_greedy]
        if len(random) == len(draws):
            drawn = _draw(scores, draws, self._stages[0])
        else:
            drawn = scores.argmax(dim=1)
            if random:
                rows_at_random = upload(random, torch.int64, scores.device)
                of_them = scores.index_select(0, rows_at_random)
                drawn.index_copy_(0, rows_at_random, _draw(of_them, [draws[row] for row in random], self._stages[0]))
        token_ids: list[int] = drawn.where(is_finite, _NOT_FINITE).tolist()

        for num_candidates in self._stages[1:]:
            rows = [row for row, token_id in enumerate(token_ids) if token_id == _UNDECIDED]
            if not rows:
                break
            drawn = _draw(scores[rows], [draws[row] for row in rows], num_candidates)
            for row, token_id in zip(rows, drawn.tolist(), strict=True):
                token_ids[row] = token_id
        return [None if token_id == _NOT_FINITE else token_id for token_id in token_ids]


def _adjusted(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    adjustments = {row: draw.adjustment for row, draw in enumerate(draws) if draw.adjustment is not None}
    if not adjustments:
        return logits
    rows = upload(list(adjustments), torch.int64, logits.device)
    return logits.index_copy(0, rows, adjusted(logits.index_select(0, rows), list(adjustments.values())))


def _logprobs(logits: Tensor, token_ids: list[int | None], draws: Sequence[Draw]) -> dict[int, TokenLogprob]:
    """By row."""
    asked = {
        row: (token_id, draw.params.logprobs)
        for row, (token_id, draw) in enumerate(zip(token_ids, draws, strict=True))
        if token_id is not None and draw.params.logprobs is not None
    }
    if not asked:
        return {}
    ids = upload([token_id for token_id, _ in asked.values()], torch.int64, logits.device)
    of_them = logits.index_select(0, upload(list(asked), torch.int64, logits.device))
    packed = packed_logprobs(of_them, ids, max(num_top for _, num_top in asked.values())).tolist()
    return {
        row: unpacked_logprob(token_id, values, num_top)
        for (row, (token_id, num_top)), values in zip(asked.items(), packed, strict=True)
    }


def _draw(scores: Tensor, draws: Sequence[Draw], num_candidates: int) -> Tensor:
    """scores [B, V] -> token ids int64 [B] by temperature, min-p, top-k, then top-p, then the inverse of what is left.

    Of the `num_candidates` most likely tokens; _UNDECIDED where the token may be another one, never when they are all.
    What masses the tokens beyond them have is known within bounds, so masses are pairs: [B, 2], the least and the most.
    """
    vocab_size = scores.shape[1]
    is_whole = num_candidates == vocab_size
    settings = upload(
        [
            (
                draw.params.temperature,
                draw.params.top_k or vocab_size,
                draw.params.top_p,
                draw.params.min_p,
                uniform(draw.seed, draw.position),
            )
            for draw in draws
        ],
        torch.float64,
        scores.device,
    )
    temperature, top_k, top_p, min_p, uniforms = (column[:, None] for column in settings.unbind(dim=1))
    top_k = top_k.long().clamp(max=vocab_size)

    values, order = ranked(scores) if is_whole else scores.topk(num_candidates, dim=1)
    # The maximum is taken off first, so that a tiny temperature gives 0 and -inf and never inf - inf.
    peak = values[:, :1].double()
    if any(draw.params.min_p > 0 for draw in draws):
        top_k = top_k.minimum((scores >= peak + temperature * min_p.log()).sum(dim=1, keepdim=True))
    weights = ((values.double() - peak) / temperature).exp()
    cumulative = weights.cumsum(dim=1)
    if is_whole:
        total = cumulative[:, -1:]
        num_known = (weights > 0).sum(dim=1, keepdim=True)
    else:
        total = _total_weight(scores, peak, temperature)
        # Which of two equal tokens comes first is for the whole sort to say; the last may be equal to one beyond it.
        num_known = (values[:, 1:] < values[:, :-1]).long().cumprod(dim=1).sum(dim=1, keepdim=True)
    last = (num_known - 1).clamp(min=0)
    # No token beyond the known ones weighs more.
    weight_beyond = weights.gather(1, last) * (not is_whole)

    of_top_k = cumulative.gather(1, torch.minimum(top_k - 1, last))
    most = torch.minimum(of_top_k + (top_k - num_known).clamp(min=0) * weight_beyond, total)
    mass = torch.cat([of_top_k, most], dim=1).where(top_k < vocab_size, total)
    # The last token that top-p keeps is the first that completes its share.
    cut = torch.searchsorted(cumulative, top_p * mass)
    beyond = top_p * mass + torch.cat([torch.zeros_like(weight_beyond), weight_beyond], dim=1)
    kept = cumulative.gather(1, torch.minimum(cut, last)).where(cut < num_known, beyond).minimum(mass)

    index = torch.searchsorted(cumulative, uniforms * kept, right=True)
    # Rounding may leave the product at the mass: then the last token of it is meant.
    index = index.minimum(cut).minimum(top_k - 1)
    if is_whole:
        return order.gather(1, index.minimum(last))[:, 0]
    is_decided = (index[:, 0] == index[:, 1]) & (index[:, 1] < num_known[:, 0])
    token_ids = order.gather(1, index[:, :1].clamp(max=num_candidates - 1))[:, 0]
    return token_ids.where(is_decided, _UNDECIDED)


def _total_weight(scores: Tensor, peak: Tensor, temperature: Tensor) -> Tensor:
    """The sum of each row's weights, float64 [B, 1]. On the CPU some rows at a time, which stay in the nearest caches
    from pass to pass."""
    size = _NUM_CACHED_ROWS if scores.device.type == "cpu" else len(scores)
    blocks = zip(scores.split(size), peak.split(size), temperature.split(size), strict=True)
    return torch.cat([(each - top).div_(scale).exp_().sum(dim=1, keepdim=True) for each, top, scale in blocks])

"""Log-probabilities of tokens, as the model gives them: the log-softmax of its logits over the whole vocabulary, before
bias, penalties, temperature and every filter, tokens that are never sampled included. So they say what the model
believes, they add up along a text, and they are the same for a token that was read and for one that was sampled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atlas_model.upload import upload

# Of a prompt, at a time.
_MAX_NUM_LOGITS = 2**20


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token's natural logarithm of probability, given all that precedes it, and the most likely tokens in its
    place with theirs, the most likely first; the token itself may be among them or not."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptTargets:
    """Which tokens of a piece's row are followed by tokens whose log-probabilities are asked for: `token_ids` come
    after the ones from `start` on. num_top: how many of the most likely tokens are told with each."""

    start: int
    token_ids: Sequence[int]
    num_top: int


def packed_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> Tensor:
    """logits [N, V], int64 [N] -> float64 [N, 1 + 2 num_top]: the tokens' log-probabilities, those of the most likely
    tokens, and their ids, on the device, so that all of it can be fetched at once."""
    logits = logits.double()
    total = logits.logsumexp(dim=1, keepdim=True)
    own = logits.gather(1, token_ids[:, None])
    values, indices = logits.topk(min(num_top, logits.shape[1]), dim=1)
    return torch.cat([own - total, values - total, indices.double()], dim=1)


def unpacked_logprob(token_id: int, row: Sequence[float], num_top: int) -> TokenLogprob:
    """A row of `packed_logprobs`, of which `num_top` are wanted."""
    middle = (len(row) + 1) // 2
    values, indices = row[1:middle], row[middle:]
    top = tuple((int(index), value) for index, value in zip(indices[:num_top], values[:num_top], strict=True))
    return TokenLogprob(token_id, row[0], top)


def logprobs_of(
    hidden: Tensor, targets: PromptTargets, head: Callable[[Tensor], Tensor], vocab_size: int
) -> list[TokenLogprob]:
    """Of a row's hidden states [T, width], what the model thought of the tokens that came next. head: hidden states to
    logits; it is given a few at a time, however long the row is."""
    stop = targets.start + len(targets.token_ids)
    token_ids = upload(targets.token_ids, torch.int64, hidden.device)
    size = max(1, _MAX_NUM_LOGITS // vocab_size)
    rows: list[list[float]] = []
    for some, their_ids in zip(hidden[targets.start : stop].split(size), token_ids.split(size), strict=True):
        rows += packed_logprobs(head(some), their_ids, targets.num_top).tolist()
    return [unpacked_logprob(*each, targets.num_top) for each in zip(targets.token_ids, rows, strict=True)]

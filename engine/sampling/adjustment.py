"""What one answer changes about the model's scores before a token is picked: penalties and bias, kept as rows on the
device and brought up to date with every token, so that a step uploads nothing for them.

First the repetition penalty, of the model's own logits; then what is added: bias - frequency_penalty · occurrences -
presence_penalty · (1 if it occurs).
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from atlas_model.upload import upload
from engine.sampling.sampling_params import SamplingParams


class Adjustment:
    """One per answer that asks for any. context_token_ids: what this call feeds before it.

    factors, summands: float32 [V], those of the next token.
    """

    def __init__(
        self, params: SamplingParams, context_token_ids: Iterable[int], vocab_size: int, device: torch.device
    ) -> None:
        self._params = params
        self._bias = dict(params.logit_bias)
        self._occurrences: Counter[int] = Counter()
        self.factors = torch.ones(vocab_size, device=device)
        self.summands = torch.zeros(vocab_size, device=device)
        if params.repetition_penalty != 1:
            token_ids = upload(list(set(context_token_ids)), torch.int64, device)
            self.factors.index_fill_(0, token_ids, params.repetition_penalty)
        if self._bias:
            token_ids = upload(list(self._bias), torch.int64, device)
            self.summands.index_copy_(0, token_ids, upload(list(self._bias.values()), torch.float32, device))

    def note(self, token_id: int) -> None:
        """The answer goes on with this token."""
        params = self._params
        self._occurrences[token_id] += 1
        self.factors[token_id].fill_(params.repetition_penalty)
        penalty = params.presence_penalty + params.frequency_penalty * self._occurrences[token_id]
        self.summands[token_id].fill_(self._bias.get(token_id, 0.0) - penalty)


def adjusted(scores: Tensor, adjustments: Sequence[Adjustment]) -> Tensor:
    """scores [B, V] and each row's adjustment -> [B, V]."""
    factors = torch.stack([each.factors for each in adjustments])
    summands = torch.stack([each.summands for each in adjustments])
    return torch.where(scores > 0, scores / factors, scores * factors) + summands

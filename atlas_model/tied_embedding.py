"""The token embedding, which is the output layer as well."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import linear


class TiedEmbedding(nn.Embedding):
    """int64 [...] -> [..., width], and back to a score for every token of the vocabulary."""

    def scores(self, hidden: Tensor) -> Tensor:
        """[..., width] -> [..., vocab_size]."""
        return linear(hidden, self.weight)

"""The dense layers' products in float32 by the CPU's faster ways, for reading alone.

Torch gives a product of tokens by weights to MKL, which on processors of other makers is slow for two tokens and up to
some tens. Two to four go as columns to the weights, W x^T, which is a pass over the weights; more go to oneDNN with a
copy of the weights in the order in which it reads them. Numbers differ in rounding alone. The copies take as many bytes
again as the weights; they are no part of a checkpoint, and do not follow a weight that changes: models that learn in
training go without them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from atlas_model.model import AtlasModel
from atlas_model.tied_embedding import TiedEmbedding

_OPERATORS = ("_reorder_linear_weight", "_linear_pointwise")
_MAX_NUM_COLUMNS = 4
# What oneDNN chooses the order by; that for some tens of rows is good for one and for hundreds.
_TYPICAL_NUM_ROWS = 32


def supports_packed_products() -> bool:
    """Whether this build of torch has the operators, which are inductor's and not documented."""
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS)


class PackedWeight:
    """A float32 weight [out, in] on the CPU, with a copy in oneDNN's order."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight.detach()
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(self._weight, _TYPICAL_NUM_ROWS)

    def __deepcopy__(self, memo: object) -> PackedWeight:
        """Itself: it is never changed, and torch cannot copy what oneDNN has ordered."""
        return self

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., in] -> [..., out], as `linear`."""
        num_rows = x.numel() // x.shape[-1]
        if num_rows <= 1:
            return linear(x, self._weight, bias)
        if num_rows > _MAX_NUM_COLUMNS:
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, bias, "none", [], "")
            return product
        columns = self._weight @ x.reshape(num_rows, -1).t()
        product = columns.t().reshape(*x.shape[:-1], -1)
        return product if bias is None else product + bias


class PackedLinear(nn.Linear):
    """A linear layer that is only read with; with gradients it is as any other."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self._packed = PackedWeight(plain.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self._packed.multiply(x, self.bias)


class PackedEmbedding(TiedEmbedding):
    """The embedding whose scores are products with a packed weight."""

    def __init__(self, plain: TiedEmbedding) -> None:
        super().__init__(plain.num_embeddings, plain.embedding_dim, device="meta")
        self.weight = plain.weight
        self._packed = PackedWeight(plain.weight)

    def scores(self, hidden: Tensor) -> Tensor:
        return self._packed.multiply(hidden)


def pack_products(model: AtlasModel) -> None:
    """From now on the model's layers, and its scores, are products with packed weights; only for reading, not for
    training. Does nothing to a model that is not on the CPU or not float32, nor where the operators are missing."""
    weight = model.embedding.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not supports_packed_products():
        return
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child))
    if type(model.embedding) is TiedEmbedding:
        model.embedding = PackedEmbedding(model.embedding)

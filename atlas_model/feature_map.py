"""Polynomial features of keys and queries (Atlas, section 3.1): what gives a matrix memory super-linear capacity.

phi(q) . phi(k) = a_0 + a_1 (q . k) + a_2 (Pq . Pk)^2 with learnable a_i >= 0. a_1 and a_2 begin as 1 / i!; a_0 begins
at 0.01 and not at 1 (decided here): the constant makes all keys alike, and alike keys are what the bounded step has to
brake. Each feature carries the root of its coefficient, so the product needs no weights of its own. P is a learned
projection to `feature_width` dimensions (decided here: it makes a session's size a design parameter); with
feature_width = key_width there is no projection and the map is the paper's. Degree 1 is the identity: no constant, no
scale. With feature_norm `unit` the features have length 1 (decided here): else training makes them long, then the
bounded step brakes every chunk to the same strength, and no gate but one that is quite shut keeps prose out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from atlas_model.config import MemoryConfig

_FIRST_CONSTANT = 0.01


def num_features(config: MemoryConfig) -> int:
    """How many features one key has: the input width of the memory network."""
    if config.feature_degree == 1:
        return config.key_width
    return 1 + config.key_width + config.feature_width * (config.feature_width + 1) // 2


class FeatureMap(nn.Module):
    """phi: [B, H, T, key_width] -> [B, H, T, num_features]. One set of coefficients and projections per head.

    `coefficient_roots` [degree + 1, H] holds the roots of the a_i: their squares cannot be negative.
    """

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__()
        self.degree = config.feature_degree
        self.has_unit_norm = config.feature_norm == "unit"
        self.projection: nn.Parameter | None = None
        if self.degree == 1:
            return
        roots = torch.tensor([_FIRST_CONSTANT, 1.0, 0.5]).sqrt()
        self.coefficient_roots = nn.Parameter(roots[:, None].repeat(1, config.num_heads))
        if config.feature_width < config.key_width:
            bound = config.key_width**-0.5
            shape = (config.num_heads, config.key_width, config.feature_width)
            self.projection = nn.Parameter(torch.empty(shape).normal_(std=bound * 2.0))
        rows, columns = torch.triu_indices(config.feature_width, config.feature_width)
        # NOTE: picking by a product with zeros and ones: the backward of an index is a scatter, slow on a CPU.
        picks = torch.eye(config.feature_width)
        self.register_buffer("pick_rows", picks[rows].T.contiguous(), persistent=False)
        self.register_buffer("pick_columns", picks[columns].T.contiguous(), persistent=False)
        self.register_buffer("is_mixed", (rows != columns).float(), persistent=False)

    pick_rows: Tensor
    pick_columns: Tensor
    is_mixed: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.degree == 1:
            return x
        projected = x if self.projection is None else x @ self.projection
        pairs = (projected @ self.pick_rows) * (projected @ self.pick_columns)
        pairs = pairs * (1.0 + (math.sqrt(2.0) - 1.0) * self.is_mixed)
        roots = self.coefficient_roots[:, :, None, None]
        constant = roots[0].expand(*x.shape[:-1], 1)
        features = torch.cat([constant, roots[1] * x, roots[2] * pairs], dim=-1)
        return normalize(features, dim=-1) if self.has_unit_norm else features

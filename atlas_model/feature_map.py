"""Polynomial features of keys and queries (Atlas, section 3.1): what gives a matrix memory super-linear capacity.

phi(q) . phi(k) = a_0 + a_1 (q . k) + a_2 (Pq . Pk)^2 + a_3 (Pq . Pk)^3 up to degree p, with learnable a_i >= 0. They
begin as 1 / i!, but a_0 at 0.01 and not at 1 (decided here): the constant makes all keys alike, and alike keys are what
the bounded step has to brake. Each feature carries the root of its coefficient, so the product needs no weights of its
own. P is a learned projection to `feature_width` dimensions (decided here: it makes a session's size a design
parameter); with feature_width = key_width there is no projection and the map is the paper's. Degree 1 is the identity:
no constant, no scale. The `elementwise` kind has the powers of each projected dimension alone in place of all
monomials: r features a degree, and no longer the kernel above. With feature_norm `unit` the features have length 1
(decided here): else training makes them long, then the bounded step brakes every chunk to the same strength, and no
gate but one that is quite shut keeps prose out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn

from atlas_model.config import MemoryConfig

_FIRST_CONSTANT = 0.01
_LEAST_LENGTH = 1e-12


def num_features(config: MemoryConfig) -> int:
    """How many features one key has: the input width of the memory network."""
    if config.feature_degree == 1:
        return config.key_width
    return 1 + config.key_width + sum(num_monomials(config, degree) for degree in range(2, config.feature_degree + 1))


def num_monomials(config: MemoryConfig, degree: int) -> int:
    """How many features of that degree there are."""
    return len(_monomials(config, degree))


@lru_cache(maxsize=8)
def _monomials(config: MemoryConfig, degree: int) -> tuple[tuple[int, ...], ...]:
    """The factors of each monomial of that degree, as dimensions 0 .. feature_width - 1."""
    dimensions = range(config.feature_width)
    if config.feature_kind == "elementwise":
        return tuple((dimension,) * degree for dimension in dimensions)
    return tuple(combinations_with_replacement(dimensions, degree))


def _multiplicity(monomial: tuple[int, ...]) -> int:
    """In how many orders its factors can stand: its coefficient in the expanded power of a sum."""
    repeats = math.prod(math.factorial(count) for count in Counter(monomial).values())
    return math.factorial(len(monomial)) // repeats


class FeatureMap(nn.Module):
    """phi: [B, H, T, key_width] -> [B, H, T, num_features]. One set of coefficients and projections per head.

    `coefficient_roots` [degree + 1, H] holds the roots of the a_i: their squares cannot be negative.
    """

    feature_degrees: Tensor
    multiplicities: Tensor

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__()
        self.degree = config.feature_degree
        self.has_unit_norm = config.feature_norm == "unit"
        self.is_elementwise = config.feature_kind == "elementwise"
        self.projection: nn.Parameter | None = None
        if self.degree == 1:
            return
        roots = torch.tensor([_FIRST_CONSTANT, *(1 / math.factorial(i) for i in range(1, self.degree + 1))]).sqrt()
        self.coefficient_roots = nn.Parameter(roots[:, None].repeat(1, config.num_heads))
        if config.feature_width < config.key_width:
            bound = config.key_width**-0.5
            shape = (config.num_heads, config.key_width, config.feature_width)
            self.projection = nn.Parameter(torch.empty(shape).normal_(std=bound * 2.0))
        for degree in range(2, self.degree + 1):
            monomials = _monomials(config, degree)
            # NOTE: picking by a product with zeros and ones: the backward of an index is a scatter, slow on a CPU.
            picks = torch.eye(config.feature_width)[torch.tensor(monomials)].permute(1, 2, 0).contiguous()
            self.register_buffer(f"picks_{degree}", picks, persistent=False)
            multiplicities = torch.tensor([float(_multiplicity(each)) for each in monomials])
            self.register_buffer(f"multiplicities_{degree}", multiplicities, persistent=False)
            indices = torch.tensor(monomials).T.flatten()
            self.register_buffer(f"factors_{degree}", indices, persistent=False)
        counts = [1, config.key_width, *(num_monomials(config, degree) for degree in range(2, self.degree + 1))]
        every = [torch.ones(1 + config.key_width)]
        every += [self.get_buffer(f"multiplicities_{degree}") for degree in range(2, self.degree + 1)]
        self.register_buffer("multiplicities", torch.cat(every), persistent=False)
        degrees = [degree for degree, count in enumerate(counts) for _ in range(count)]
        self.register_buffer("feature_degrees", torch.tensor(degrees), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.degree == 1:
            return x
        projected = x if self.projection is None else x @ self.projection
        roots = list(self.coefficient_roots[:, :, None, None].unbind(0))
        if self.has_unit_norm:
            length = self._length(x, projected, roots)
            roots = [root / length for root in roots]
        parts = [roots[0].expand(*x.shape[:-1], 1), roots[1] * x]
        for degree in range(2, self.degree + 1):
            first, *others = self.get_buffer(f"picks_{degree}").unbind(0)
            # The roots go with the small factors: the monomials are many.
            monomials = (roots[degree] * projected) @ (first * self.get_buffer(f"multiplicities_{degree}").sqrt())
            for picks in others:
                monomials = monomials * (projected @ picks)
            parts.append(monomials)
        return torch.cat(parts, dim=-1)

    def step(self, x: Tensor) -> Tensor:
        """The same of one token a row, [B, H, key_width], in fewer operations."""
        if self.degree == 1:
            return x
        projected = x if self.projection is None else torch.bmm(x.transpose(0, 1), self.projection).transpose(0, 1)
        # The first of the multiplicities is the constant's, 1.
        parts = [self.multiplicities[0].expand(*x.shape[:-1], 1), x]
        for degree in range(2, self.degree + 1):
            picked = projected.flatten(0, 1).index_select(1, self.get_buffer(f"factors_{degree}"))
            first, *others = picked.view(*x.shape[:-1], degree, -1).unbind(-2)
            for factor in others:
                first = first * factor
            parts.append(first)
        features = torch.cat(parts, dim=-1) * self.feature_roots()
        if not self.has_unit_norm:
            return features
        length: Tensor = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
        return features / length.clamp(min=_LEAST_LENGTH)

    def feature_roots(self) -> Tensor:
        """What each feature is multiplied by before it is scaled to length 1, [H, num_features]."""
        roots: Tensor = self.coefficient_roots.mT.index_select(1, self.feature_degrees)
        return roots.mul(self.multiplicities.sqrt())

    def _length(self, x: Tensor, projected: Tensor, roots: Sequence[Tensor]) -> Tensor:
        """|phi(x)| without the features, [B, H, T, 1]: the kernel of x with itself, or what it is element-wise."""
        square = roots[0].square() + roots[1].square() * x.square().sum(-1, keepdim=True)
        squares = projected.square()
        for degree in range(2, self.degree + 1):
            if self.is_elementwise:
                powers = squares.pow(degree).sum(-1, keepdim=True)
            else:
                powers = squares.sum(-1, keepdim=True).pow(degree)
            square = square + roots[degree].square() * powers
        return square.sqrt().clamp(min=_LEAST_LENGTH)

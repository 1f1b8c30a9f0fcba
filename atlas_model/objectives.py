"""The inner objectives: what a memory's answer to a key is compared with its value by (Miras, arXiv 2504.13173).

A token's inner loss is a sum over the coordinates of answer and value, both [..., value_width]. The forms of the memory
need its slope, the derivative in the answer; the naive form takes the loss itself and leaves the slope to autograd.

An objective that is added here implements `Objective` and enters the table at the end; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor
from torch.nn.functional import huber_loss


class Objective(Protocol):
    """has_bounded_curvature: whether the slope grows no faster than the answer, as the bounded step needs."""

    has_bounded_curvature: bool

    def loss(self, answer: Tensor, values: Tensor) -> Tensor:
        """[..., value_width] twice -> [...]."""
        ...

    def slope(self, answer: Tensor, values: Tensor) -> Tensor:
        """Derivative of the loss in the answer, [..., value_width]."""
        ...


class L2:
    """1/2 |answer - value|^2 (Atlas, Eq 9; the 1/2 is ours)."""

    has_bounded_curvature = True

    def loss(self, answer: Tensor, values: Tensor) -> Tensor:
        return 0.5 * (answer - values).square().sum(-1)

    def slope(self, answer: Tensor, values: Tensor) -> Tensor:
        return answer - values


class Dot:
    """-<answer, value>: linear attention's Hebbian write, which forgets nothing and corrects nothing (Miras, 3.1)."""

    has_bounded_curvature = False

    def loss(self, answer: Tensor, values: Tensor) -> Tensor:
        return -(answer * values).sum(-1)

    def slope(self, answer: Tensor, values: Tensor) -> Tensor:
        return -values.expand_as(answer)


class Lp:
    """1/p sum |answer - value|^p, p > 1 (Moneta; Miras, Eq 11). Its curvature has no bound: nothing holds the step."""

    has_bounded_curvature = False

    def __init__(self, power: float) -> None:
        self._power = power

    def loss(self, answer: Tensor, values: Tensor) -> Tensor:
        return (answer - values).abs().pow(self._power).sum(-1) / self._power

    def slope(self, answer: Tensor, values: Tensor) -> Tensor:
        error = answer - values
        return error.sign() * error.abs().pow(self._power - 1.0)


class Huber:
    """Quadratic up to an error of delta and linear beyond, in each coordinate (Yaad; Miras, Eq 12)."""

    has_bounded_curvature = True

    def __init__(self, delta: float) -> None:
        self._delta = delta

    def loss(self, answer: Tensor, values: Tensor) -> Tensor:
        return huber_loss(answer, values.expand_as(answer), reduction="none", delta=self._delta).sum(-1)

    def slope(self, answer: Tensor, values: Tensor) -> Tensor:
        return (answer - values).clamp(-self._delta, self._delta)


OBJECTIVES: Mapping[str, Callable[[float, float], Objective]] = {
    "l2": lambda power, delta: L2(),
    "dot": lambda power, delta: Dot(),
    "lp": lambda power, delta: Lp(power),
    "huber": lambda power, delta: Huber(delta),
}
"""By name, from (objective_power, huber_delta) of the memory's configuration."""

"""The matrix products that a computation makes: their number, shapes and operations, and how long they take alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_Specification = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides of an operand."""


class MatrixProducts(TorchDispatchMode):
    """Records every product made while it is entered; afterwards `repeat` makes them again, without the rest.

    flops: their operations, two for each multiplication, as `torch.utils.flop_counter` counts them.
    Each product is repeated by the same operator on numbers of its own, with the shapes and strides of the original's.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self._operands: dict[tuple[int, _Specification], Tensor] = {}
        self._calls: list[tuple[Callable[..., Tensor], list[Any], dict[str, Any]]] = []

    @classmethod
    def of(cls, computation: Callable[[], object]) -> Self:
        """What one run of the computation makes. Not in inference mode, where products arrive under other names."""
        products = cls()
        with torch.no_grad(), products:
            computation()
        return products

    @property
    def num_calls(self) -> int:
        return len(self._calls)

    def repeat(self) -> None:
        """All products once more, in their order."""
        for operator, arguments, options in self._calls:
            operator(*arguments, **options)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        result = func(*args, **options)
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.flops += count(*args, **options, out_val=result)
            stand_ins = [self._stand_in(at, each) if isinstance(each, Tensor) else each for at, each in enumerate(args)]
            self._calls.append((func, stand_ins, options))
        return result

    def _stand_in(self, place: int, operand: Tensor) -> Tensor:
        specification = (tuple(operand.shape), operand.stride())
        if (place, specification) not in self._operands:
            length = 1 + sum((size - 1) * stride for size, stride in zip(*specification, strict=True))
            with torch.utils._python_dispatch._disable_current_modes():
                numbers = torch.randn(length, dtype=operand.dtype, device=operand.device)
                self._operands[place, specification] = numbers.as_strided(*specification)
        return self._operands[place, specification]

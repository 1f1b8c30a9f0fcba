"""The matrix products that a computation makes: their number, shapes and operations, and how long they take alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten
_FLOPS = {product: flop_registry[product] for product in (_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm)}
# In place, where the registry does not know it.
_FLOPS[_aten.baddbmm_] = flop_registry[_aten.baddbmm]
_PACKED_PRODUCT = "mkldnn::_linear_pointwise"
"""By name: not every build has it."""

_Specification = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides of an operand."""


@dataclass(frozen=True, slots=True)
class _Product:
    operator: Callable[..., Tensor]
    arguments: list[Any]
    options: dict[str, Any]
    flops: int
    is_dense: bool


class MatrixProducts(TorchDispatchMode):
    """Records every product made while it is entered; afterwards `repeat` makes them again, without the rest. Those
    inside of a fused operator, attention's or a convolution's, are none of them.

    Each product is repeated by the same operator on numbers of its own, with the shapes and strides of the original's.
    weights: tensors that stay what they are, so that a repeated product finds them in the cache or in memory as the
    original does; a product with one of them is dense.
    """

    def __init__(self, weights: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = {each.untyped_storage().data_ptr() for each in weights}
        self._operands: dict[tuple[int, torch.dtype, _Specification], Tensor] = {}
        self._products: list[_Product] = []

    @classmethod
    def of(cls, computation: Callable[[], object], weights: Iterable[Tensor] = ()) -> Self:
        """What one run of the computation makes. Not in inference mode, where products arrive under other names."""
        products = cls(weights)
        with torch.inference_mode(False), torch.no_grad(), products:
            computation()
        return products

    def dense(self) -> MatrixProducts:
        """Those with a weight alone, in their order."""
        dense = MatrixProducts()
        dense._products = [each for each in self._products if each.is_dense]
        return dense

    @property
    def num_calls(self) -> int:
        return len(self._products)

    @property
    def flops(self) -> int:
        """Two for each multiplication, as `torch.utils.flop_counter` counts them."""
        return sum(each.flops for each in self._products)

    @property
    def dtype(self) -> torch.dtype:
        """That of most operations. There must be one."""
        flops: Counter[torch.dtype] = Counter()
        for each in self._products:
            flops[next(operand.dtype for operand in each.arguments if isinstance(operand, Tensor))] += each.flops
        return flops.most_common(1)[0][0]

    def repeat(self) -> None:
        """All products once more, in their order."""
        for each in self._products:
            each.operator(*each.arguments, **each.options)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        result = func(*args, **options)
        if func.overloadpacket in _FLOPS or func.name() == _PACKED_PRODUCT:
            operands = [self._operand(at, each) if isinstance(each, Tensor) else each for at, each in enumerate(args)]
            is_dense = any(isinstance(mine, Tensor) and mine is its for mine, its in zip(operands, args, strict=True))
            if func.name() == _PACKED_PRODUCT:
                flops = 2 * args[0].numel() * result.shape[-1]
            else:
                flops = _FLOPS[func.overloadpacket](*args, **options, out_val=result)
            self._products.append(_Product(func, operands, options, flops, is_dense))
        return result

    def _operand(self, place: int, operand: Tensor) -> Tensor:
        """The weight itself, as every packed tensor is, or numbers to stand in for what the computation has made."""
        if operand.is_mkldnn or operand.untyped_storage().data_ptr() in self._weights:
            return operand
        specification = (tuple(operand.shape), operand.stride())
        key = (place, operand.dtype, specification)
        if key not in self._operands:
            length = 1 + sum((size - 1) * stride for size, stride in zip(*specification, strict=True))
            with torch.utils._python_dispatch._disable_current_modes():
                numbers = torch.randn(length, dtype=operand.dtype, device=operand.device)
                self._operands[key] = numbers.as_strided(*specification)
        return self._operands[key]

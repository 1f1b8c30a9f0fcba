"""Where a computation would make the host wait for a CUDA device, found out on a CPU.

On a CPU every tensor lies in the same memory, so this tells them apart by their history: a tensor that is made of
Python values or by a factory without a `device` lies on the host, and what is moved by `.to(device)` or made with a
`device` on the device. Recorded are: reading a device's tensor in Python (`item`, `bool`, `tolist`, ...); operations
whose result's shape the host must know (`nonzero`, masks as an index); an upload that blocks; and the host's tensors,
or lists, as operands or indices of the device's.
"""

import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

_ROOT = str(Path(__file__).resolve().parent.parent)
_READS = {
    *("item", "tolist", "numpy", "cpu", "equal", "allclose", "is_nonzero", "nonzero", "argwhere", "masked_select"),
    *("unique", "unique_consecutive", "bincount", "__array__"),
    *("__bool__", "__int__", "__float__", "__index__", "__contains__"),
}
_MADE_OF_VALUES = {"tensor", "as_tensor", "new_tensor", "from_numpy", "scalar_tensor"}


@dataclass(frozen=True, slots=True)
class Crossing:
    """`name`: the call. `where`: file and line of ours that made it."""

    name: str
    where: str


class HostCrossings(TorchFunctionMode):
    """Records while it is entered. Tensors that were made before lie on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Crossing] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call = _Call((resolve_name(func) or "").rpartition(".")[2], args, kwargs or {})
        if call.makes_the_host_wait():
            ours = [frame for frame in traceback.extract_stack(sys._getframe(1)) if frame.filename.startswith(_ROOT)]
            self.found.append(Crossing(call.name, f"{ours[-1].filename.removeprefix(_ROOT)[1:]}:{ours[-1].lineno}"))
        result = func(*args, **call.options)
        for tensor in _tensors(result):
            tensor._lies_on_host = call.leaves_it_on_the_host()  # type: ignore[attr-defined]
        return result


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def tensors(self) -> list[Tensor]:
        return list(_tensors((self.args, self.options)))

    @property
    def is_on_host(self) -> bool:
        """All its operands are the host's; without any it is a factory, which says where."""
        if self.tensors:
            return all(map(_lies_on_host, self.tensors))
        return self.options.get("device") is None

    @property
    def is_upload(self) -> bool:
        if self.name in _MADE_OF_VALUES:
            return self.name == "new_tensor" or self.options.get("device") is not None
        places = (*self.args[1:], self.options.get("device"))
        return self.name == "to" and self.is_on_host and any(isinstance(place, torch.device) for place in places)

    def makes_the_host_wait(self) -> bool:
        if self.is_upload:
            return not self.options.get("non_blocking")
        if self.is_on_host:
            return False
        if self.name in _READS or (self.name == "to" and "cpu" in (*self.args[1:], self.options.get("device"))):
            return True
        if self.name in ("__getitem__", "__setitem__") and _index_needs_the_host(self.args[1]):
            return True
        return any(_lies_on_host(tensor) and tensor.ndim > 0 for tensor in self.tensors)

    def leaves_it_on_the_host(self) -> bool:
        return self.is_on_host and not self.is_upload


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _lies_on_host(tensor: Tensor) -> bool:
    return getattr(tensor, "_lies_on_host", False)


def _index_needs_the_host(index: Any) -> bool:
    """A list becomes a tensor of the host's, and a mask's number of places must be known."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, list) or (isinstance(part, Tensor) and part.dtype == torch.bool) for part in parts)

"""How the numbers of a state are stored: as they are, as bfloat16, or as int8 with a scale a row.

Positions and gates are stored as they are with every codec: integers count, and a gate is exactly 0 or 1 where the
configuration does without it. So is what has two bytes or less anyway. Every other tensor is `bf16` (rounded to the
nearest, ties to even) or `int8` (symmetric, in units of its row's scale; the scales are a tensor beside it).

Coding is idempotent, bit for bit: what has been decoded is coded to the same bytes again, however often. A scale is a
bfloat16, so that its product with a number of seven bits is exact in a float32, and a row's largest number is ±127
(less in a row of tiny numbers, whose scale is the smallest).

What a turn adds to a number is lost where it is less than half of the last bit that is kept: the more commits there are
for the same tokens, the more is lost.
"""

from collections.abc import Mapping
from enum import StrEnum

import torch
from torch import Tensor

from atlas_model.memory import TensorSpec
from engine.errors import InvalidState


class Codec(StrEnum):
    """`bf16` halves a float32 state and keeps 8 bits of each number; `int8` quarters it and keeps 7 bits of a row's
    largest."""

    NONE = "none"
    BF16 = "bf16"
    INT8 = "int8"


_SCALES = ".scales"
_AS_THEY_ARE = ".gates"
_LARGEST = 127
# No number that is coded is larger, and none that is decoded is infinite.
_MAX_NUMBER = 2.0**126
_MAX_SCALE = 2.0**120
# Below it a bfloat16 loses bits. A row of zeros has this scale.
_MIN_SCALE = torch.finfo(torch.bfloat16).tiny


def stored_spec(spec: Mapping[str, TensorSpec], codec: Codec) -> dict[str, TensorSpec]:
    """The tensors that are stored for a state of these, in their order."""
    stored = {}
    for name, each in spec.items():
        if not _is_coded(name, each.dtype, codec):
            stored[name] = each
        elif codec is Codec.BF16:
            stored[name] = TensorSpec(each.shape, torch.bfloat16)
        else:
            stored[name] = TensorSpec(each.shape, torch.int8)
            stored[name + _SCALES] = TensorSpec((*each.shape[:-1], 1), torch.bfloat16)
    return stored


def code(tensors: Mapping[str, Tensor], codec: Codec) -> dict[str, Tensor]:
    """A state's tensors as they are stored: half or a quarter of their memory, or with `none` the very tensors.

    Raises InvalidState where a number that is to be rounded is not finite, or larger than any that is decoded.
    """
    stored = {}
    for name, tensor in tensors.items():
        if not _is_coded(name, tensor.dtype, codec):
            stored[name] = tensor
            continue
        largest = tensor.abs().amax(-1, keepdim=True)
        if not bool((largest <= _MAX_NUMBER).all()):
            raise InvalidState(f"{name} is not finite, or too large to be coded")
        if codec is Codec.BF16:
            stored[name] = tensor.to(torch.bfloat16)
        else:
            scales = (largest / _LARGEST).to(torch.bfloat16).clamp_(min=_MIN_SCALE)
            stored[name] = (tensor / scales).round_().to(torch.int8)
            stored[name + _SCALES] = scales
    return stored


def decode(stored: Mapping[str, Tensor], spec: Mapping[str, TensorSpec], codec: Codec) -> dict[str, Tensor]:
    """The state's tensors, each in memory of its own; with `none` the very tensors.

    Raises InvalidState for scales that `code` never gives.
    """
    if codec is Codec.NONE:
        return dict(stored)
    tensors = {}
    for name, each in spec.items():
        if not _is_coded(name, each.dtype, codec):
            tensors[name] = stored[name].clone()
        elif codec is Codec.BF16:
            tensors[name] = stored[name].to(each.dtype)
        else:
            scales = stored[name + _SCALES]
            if not bool(((scales >= _MIN_SCALE) & (scales <= _MAX_SCALE)).all()):
                raise InvalidState(f"{name} of the snapshot has scales that were never written")
            tensors[name] = stored[name].to(each.dtype).mul_(scales)
    return tensors


def coded(tensors: Mapping[str, Tensor], codec: Codec) -> dict[str, Tensor]:
    """What `decode` makes of `code`; with `none` the very tensors. Raises as `code` does."""
    spec = {name: TensorSpec(tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in tensors.items()}
    return decode(code(tensors, codec), spec, codec)


def _is_coded(name: str, dtype: torch.dtype, codec: Codec) -> bool:
    return codec is not Codec.NONE and dtype in (torch.float32, torch.float64) and not name.endswith(_AS_THEY_ARE)

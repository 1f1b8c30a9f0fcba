"""Everything a sequence carries from token to token, as a value. Its size does not depend on how much was read.

A State is never changed in place: a forward takes one and returns another. The batch is the first dimension of every
tensor. `state_spec` computes names, shapes and dtypes from a configuration alone, so that whoever stores states can
check a foreign one before a byte is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import Tensor

from atlas_model.attention import AttentionState, attention_state_spec
from atlas_model.config import AtlasConfig
from atlas_model.memory import MemoryState, TensorSpec, memory_state_spec
from atlas_model.state_delta import StateDelta

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def memory_dtype(config: AtlasConfig) -> torch.dtype:
    """Memory and momentum are float32, whatever the buffers are; float64 in a float64 model."""
    return torch.float64 if config.state_dtype == "float64" else torch.float32


def buffer_dtype(config: AtlasConfig) -> torch.dtype:
    """dtype of the token buffers: the open chunk, the convolution's tail, the attention window."""
    return _DTYPES[config.state_dtype]


@dataclass(frozen=True, slots=True)
class LayerState:
    """One block; None where its layout has no such part.

    convolution: the last inputs of the short convolution, [B, conv_width - 1, channels]. context_convolution: in `mac`
    the same of the queries that look up the context, [B, conv_width - 1, key_inner_width].
    """

    memory: MemoryState | None = None
    convolution: Tensor | None = None
    attention: AttentionState | None = None
    context_convolution: Tensor | None = None

    def named_tensors(self) -> dict[str, Tensor]:
        named = {} if self.memory is None else self.memory.named_tensors()
        if self.convolution is not None:
            named["convolution"] = self.convolution
        if self.attention is not None:
            named |= {"attention.keys": self.attention.keys, "attention.values": self.attention.values}
        if self.context_convolution is not None:
            named["context_convolution"] = self.context_convolution
        return named

    @classmethod
    def from_named_tensors(cls, tensors: Mapping[str, Tensor]) -> LayerState:
        memory = MemoryState.from_named_tensors(tensors) if "keys" in tensors else None
        attention = None
        if "attention.keys" in tensors:
            attention = AttentionState(tensors["attention.keys"], tensors["attention.values"])
        return cls(memory, tensors.get("convolution"), attention, tensors.get("context_convolution"))


@dataclass(frozen=True, slots=True, weakref_slot=True)
class State:
    """position: int64 [B], tokens fed since the session began. layers: one LayerState per block."""

    position: Tensor
    layers: tuple[LayerState, ...]

    def __repr__(self) -> str:
        num_bytes = sum(tensor.nbytes for tensor in self.named_tensors().values())
        return f"State(position={self.position.tolist()}, {len(self.layers)} layers, {num_bytes:,} bytes)"

    @property
    def batch_size(self) -> int:
        return self.position.shape[0]

    def named_tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, in the order of `state_spec`."""
        named = {"position": self.position}
        for index, layer in enumerate(self.layers):
            named |= {f"layers.{index}.{name}": tensor for name, tensor in layer.named_tensors().items()}
        return named

    @classmethod
    def from_named_tensors(cls, config: AtlasConfig, tensors: Mapping[str, Tensor]) -> State:
        """The inverse of named_tensors. ValueError when a name, a shape or a dtype is not the configuration's."""
        spec = state_spec(config)
        if list(tensors) != list(spec):
            raise ValueError("the tensors of a state must be exactly those of its configuration, in their order")
        for name, tensor in tensors.items():
            if tensor.shape[1:] != spec[name].shape or tensor.dtype != spec[name].dtype:
                raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape[1:])} is not the configuration's")
        layers: list[dict[str, Tensor]] = [{} for _ in range(config.num_layers)]
        for name, tensor in tensors.items():
            if name != "position":
                _, index, field = name.split(".", 2)
                layers[int(index)][field] = tensor
        return cls(tensors["position"], tuple(LayerState.from_named_tensors(each) for each in layers))

    def map(self, transform: Callable[[Tensor], Tensor]) -> State:
        """The state with every tensor transformed, in the order of `named_tensors`."""
        return self._like(transform(each) for each in self.named_tensors().values())

    def _like(self, tensors: Iterator[Tensor]) -> State:
        """Other tensors for the same names, in the order of `named_tensors`."""
        position = next(tensors)
        layers = tuple(
            LayerState.from_named_tensors({name: next(tensors) for name in layer.named_tensors()})
            for layer in self.layers
        )
        return State(position, layers)

    def apply(self, delta: StateDelta) -> State:
        """The state after the delta. What did not change is shared with this one."""
        tensors = self.named_tensors()
        changed = {name: tensors[name].clone(memory_format=torch.contiguous_format) for name in delta.names}
        delta.write(changed)
        tensors |= changed
        return self._like(iter(tensors.values()))

    def replace_rows(self, rows: Tensor, other: State) -> State:
        """This state, with the rows that are True (bool [B]) taken from the other."""
        theirs = iter(other.named_tensors().values())

        def choose(mine: Tensor) -> Tensor:
            return torch.where(rows.reshape(-1, *[1] * (mine.ndim - 1)), next(theirs), mine)

        return self.map(choose)

    def gather(self, rows: Tensor) -> State:
        """The given rows (int64 [R]) as a batch of their own, copied."""
        return self.map(lambda tensor: tensor.index_select(0, rows))

    def clone(self) -> State:
        return self.map(torch.clone)

    def detach(self) -> State:
        """The same values, cut off from the graph that computed them."""
        return self.map(torch.detach)

    def to(self, device: torch.device | str) -> State:
        return self.map(lambda tensor: tensor.to(device))

    @staticmethod
    def concatenate(states: Sequence[State]) -> State:
        """The rows of all states as one batch, copied."""
        layers = []
        for parts in zip(*(state.layers for state in states), strict=True):
            named = [part.named_tensors() for part in parts]
            layers.append(
                LayerState.from_named_tensors({name: torch.cat([each[name] for each in named]) for name in named[0]})
            )
        return State(torch.cat([state.position for state in states]), tuple(layers))


@lru_cache(maxsize=8)
def state_spec(config: AtlasConfig) -> Mapping[str, TensorSpec]:
    """Name -> shape without the batch dimension and dtype, for every tensor of a State, in a fixed order."""
    channels = 2 * config.key_inner_width + config.value_inner_width
    spec = {"position": TensorSpec((), torch.int64)}
    for index in range(config.num_layers):
        layer: dict[str, TensorSpec] = {}
        if config.layout != "swa":
            layer = memory_state_spec(config.layer_memory(index), memory_dtype(config), buffer_dtype(config))
            layer["convolution"] = TensorSpec((config.conv_width - 1, channels), buffer_dtype(config))
        if config.attention is not None:
            attention = attention_state_spec(config, config.attention, buffer_dtype(config))
            layer |= {f"attention.{name}": each for name, each in attention.items()}
        if config.layout == "mac":
            tail = (config.conv_width - 1, config.key_inner_width)
            layer["context_convolution"] = TensorSpec(tail, buffer_dtype(config))
        spec |= {f"layers.{index}.{name}": each for name, each in layer.items()}
    return MappingProxyType(spec)


def session_num_bytes(config: AtlasConfig) -> int:
    """Bytes of one sequence's tensors: constant, whatever was read."""
    return sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in state_spec(config).values())

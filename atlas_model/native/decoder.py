"""A model's decode step in C++: what `AtlasModel.step` computes, written into the state in place.

The structures are those of weights.h, field by field.
"""

from __future__ import annotations

import ctypes
from typing import cast

import torch
from torch import Tensor

from atlas_model.attention import rotary_frequencies
from atlas_model.block import Block
from atlas_model.feature_map import num_features, num_monomials
from atlas_model.model import AtlasModel
from atlas_model.native.library import OUT_OF_MEMORY, OUT_OF_VOCABULARY, NativeLibrary
from atlas_model.state import LayerState, State

_OBJECTIVES = {"l2": 0, "dot": 1, "lp": 2, "huber": 3}
_RETENTIONS = {"none": 0, "decay to zero": 1, "decay to initial": 2}

_int, _double, _address = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, _int) for name in ("vocab_size", "width", "num_layers", "feed_forward_width", "conv_width")),
        *((name, _int) for name in ("num_heads", "key_width", "value_width", "attention_heads", "window")),
        *((name, _int) for name in ("feature_degree", "feature_width", "num_features", "has_unit_features")),
        *((name, _int) for name in ("num_monomials_2", "num_monomials_3", "has_bounded_step")),
        *((name, _int) for name in ("objective", "retention")),
        *((name, _double) for name in ("objective_parameter", "norm_eps", "read_norm_eps")),
        *((name, _address) for name in ("factors_2", "factors_3", "frequencies")),
    ]


_LAYER_WEIGHTS = (
    "mixer_norm",
    "project",
    "output_gate",
    "convolution",
    "gates",
    "gate_bias",
    "largest_gates",
    "feature_projection",
    "feature_roots",
    "read_scale",
    "initial",
    "attention_scale",
    "out",
    "feed_forward_norm",
    "expand",
    "contract",
)


class _LayerWeights(ctypes.Structure):
    _fields_ = [("chunk", _int), *((name, _address) for name in _LAYER_WEIGHTS)]


class _ModelWeights(ctypes.Structure):
    _fields_ = [("embedding", _address), ("norm", _address), ("layers", ctypes.POINTER(_LayerWeights))]


class _LayerPlaces(ctypes.Structure):
    _fields_ = [
        (name, _address)
        for name in ("matrix", "keys", "values", "gates", "convolution", "attention_keys", "attention_values")
    ]


class NativeDecoder:
    """Holds a copy of the dense weights in the order in which the kernels read them; a weight that changes is not
    followed."""

    def __init__(self, model: AtlasModel, library: NativeLibrary) -> None:
        """The model must be one that `check_coverage` lets pass."""
        self._config = model.config
        self._library = library
        self._dtype = model.embedding.weight.dtype
        # What the decoder reads where it is.
        self._tensors: list[Tensor] = []
        self._layers = (_LayerWeights * model.config.num_layers)()
        for index, block in enumerate(model.blocks):
            self._layers[index] = self._layer_weights(cast(Block, block))
        weights = _ModelWeights(self._keep(model.embedding.weight), self._keep(model.norm.weight), self._layers)
        shape = self._shape(model)
        self._decoder = library.make(ctypes.byref(shape), ctypes.byref(weights))
        if self._decoder is None:
            raise MemoryError("no memory for the native kernels' copy of the weights")
        self._state: State | None = None
        self._places = (_LayerPlaces * model.config.num_layers)()

    def __del__(self) -> None:
        if getattr(self, "_decoder", None) is not None:
            self._library.free(self._decoder)

    def step(self, token_ids: Tensor, state: State) -> Tensor:
        """One token a row, int64 [B] -> logits [B, vocab_size]. The state, whose tensors must be contiguous, goes on in
        place.

        Raises IndexError for an id that is not of the vocabulary, and MemoryError; then nothing has changed.
        """
        if state is not self._state:
            self._bind(state)
        num_rows, token_ids = len(token_ids), token_ids.contiguous()
        assert num_rows == state.batch_size
        assert token_ids.dtype == torch.int64
        logits = torch.empty(num_rows, self._config.vocab_size, dtype=self._dtype)
        status = self._library.step(
            self._decoder,
            num_rows,
            token_ids.data_ptr(),
            state.position.data_ptr(),
            self._places,
            logits.data_ptr(),
            torch.get_num_threads(),
        )
        if status == OUT_OF_VOCABULARY:
            raise IndexError("a token id is out of the vocabulary")
        if status == OUT_OF_MEMORY:
            raise MemoryError(f"no memory for a step of {num_rows} rows")
        return logits

    def multiply(self, num_rows: int) -> Tensor:
        """The dense products of a step of so many rows and nothing else, of numbers that mean nothing: what the time of
        a step is compared with. Returns what would be the logits. Raises MemoryError."""
        logits = torch.empty(num_rows, self._config.vocab_size, dtype=self._dtype)
        if self._library.multiply(self._decoder, num_rows, logits.data_ptr(), torch.get_num_threads()):
            raise MemoryError(f"no memory for a step of {num_rows} rows")
        return logits

    def _bind(self, state: State) -> None:
        """Looks up where the state's tensors are. The state is held, so that no other can be taken for it."""
        self._state = None
        assert all(tensor.is_contiguous() for tensor in state.named_tensors().values())
        for index, layer in enumerate(state.layers):
            self._places[index] = _layer_places(layer)
        self._state = state

    def _keep(self, tensor: Tensor | None) -> int | None:
        """The address of the tensor's numbers, which stay there."""
        if tensor is None:
            return None
        self._tensors.append(tensor.detach().contiguous())
        return self._tensors[-1].data_ptr()

    def _shape(self, model: AtlasModel) -> _Shape:
        config, memory, attention = model.config, model.config.memory, model.config.attention
        assert attention is not None
        feature_map = model.mixers[0].memory.feature_map
        degrees = range(2, memory.feature_degree + 1)
        counts = {degree: num_monomials(memory, degree) for degree in degrees}
        factors = {degree: self._keep(feature_map.get_buffer(f"factors_{degree}")) for degree in degrees}
        retention = memory.retention if memory.retention == "none" else f"decay to {memory.retention_target}"
        head_width = config.key_inner_width // attention.num_heads
        return _Shape(
            vocab_size=config.vocab_size,
            width=config.width,
            num_layers=config.num_layers,
            feed_forward_width=config.feed_forward_width,
            conv_width=config.conv_width,
            num_heads=memory.num_heads,
            key_width=memory.key_width,
            value_width=memory.value_width,
            attention_heads=attention.num_heads,
            window=attention.window,
            feature_degree=memory.feature_degree,
            feature_width=memory.feature_width,
            num_features=num_features(memory),
            has_unit_features=memory.feature_norm == "unit",
            num_monomials_2=counts.get(2, 0),
            num_monomials_3=counts.get(3, 0),
            has_bounded_step=memory.step == "bounded",
            objective=_OBJECTIVES[memory.objective],
            retention=_RETENTIONS[retention],
            objective_parameter=memory.objective_power if memory.objective == "lp" else memory.huber_delta,
            norm_eps=config.norm_eps,
            read_norm_eps=memory.read_norm_eps,
            factors_2=factors.get(2),
            factors_3=factors.get(3),
            frequencies=self._keep(rotary_frequencies(head_width, attention.rotary_base)),
        )

    def _layer_weights(self, block: Block) -> _LayerWeights:
        mixer = block.mixer
        assert mixer is not None
        assert mixer.attention is not None
        gate_maps, memory = mixer.gate_maps, mixer.memory
        feature_map = memory.feature_map
        tensors: dict[str, Tensor | None] = {
            "mixer_norm": block.mixer_norm.weight,
            "project": mixer.project.weight,
            "output_gate": mixer.output_gate.weight,
            "convolution": mixer.convolution.weight,
            "gates": gate_maps.linear.weight,
            "gate_bias": gate_maps.linear.bias,
            "largest_gates": gate_maps.largest,
            "feature_projection": feature_map.projection if feature_map.degree > 1 else None,
            "feature_roots": feature_map.feature_roots() if feature_map.degree > 1 else None,
            "read_scale": memory.read_scale,
            "initial": memory.initial["w"],
            "attention_scale": mixer.attention.log_scale.exp(),
            "out": mixer.out.weight,
            "feed_forward_norm": block.feed_forward_norm.weight,
            "expand": block.expand.weight,
            "contract": block.contract.weight,
        }
        assert all(tensor is None or tensor.dtype == self._dtype for tensor in tensors.values())
        addresses = {name: self._keep(tensor) for name, tensor in tensors.items()}
        return _LayerWeights(chunk=memory.config.memory_chunk_size, **addresses)


def _layer_places(layer: LayerState) -> _LayerPlaces:
    memory, attention, convolution = layer.memory, layer.attention, layer.convolution
    assert memory is not None
    assert attention is not None
    assert convolution is not None
    tensors = (
        memory.memory["w"],
        memory.keys,
        memory.values,
        memory.gates,
        convolution,
        attention.keys,
        attention.values,
    )
    return _LayerPlaces(*(tensor.data_ptr() for tensor in tensors))

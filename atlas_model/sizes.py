"""What a configuration costs, computed from it alone: parameters, and a token's floating-point operations.

The bytes of a session are `atlas_model.state.session_num_bytes`, what a step moves of them is in `atlas_model.traffic`.
Operations are those of the matrix products, two for
each multiplication, as `torch.utils.flop_counter` counts them; what is done element by element is not among them.
"""

from __future__ import annotations

import torch

from atlas_model.config import AtlasConfig, MemoryConfig
from atlas_model.feature_map import num_features, num_monomials
from atlas_model.memory import memory_network
from atlas_model.model import AtlasModel
from atlas_model.newton_schulz import newton_schulz_products
from atlas_model.query_projection import projection_products


def num_parameters(config: AtlasConfig) -> int:
    """Numbers that training moves. Takes no memory: the model is built without its numbers."""
    with torch.device("meta"):
        return AtlasModel(config).num_parameters


def dense_flops_per_token(config: AtlasConfig) -> float:
    """Operations of one token's products with the model's weights, its logits included: the same in prefill and in
    decode. The projections of `mac`'s persistent tokens, once a call, are not among them."""
    return 2.0 * config.num_layers * _dense_products(config) + logits_flops(config)


def prefill_flops_per_token(config: AtlasConfig) -> float:
    """Operations of reading one token among many in chunk form, its logits included.

    Attention is counted at a full window, though the tokens are laid out in blocks whose corners are masked.
    """
    layers = sum(
        _dense_products(config)
        + _attention_products(config, config.layer_memory(index).memory_chunk_size)
        + _chunk_products(config, index)
        for index in range(config.num_layers)
    )
    return 2.0 * layers + logits_flops(config)


def decode_flops_per_token(config: AtlasConfig) -> float:
    """Operations that one row's token needs in recurrent form, its logits included; what is needed only where a chunk
    ends is spread over the chunk's tokens. `mac`'s persistent tokens, projected once a step, count for each row."""
    layers = sum(
        _dense_products(config) + _attention_products(config, chunk_size=1) + _recurrent_products(config, index)
        for index in range(config.num_layers)
    )
    return 2.0 * layers + logits_flops(config)


def logits_flops(config: AtlasConfig) -> float:
    """The share of one token's logits."""
    return 2.0 * config.vocab_size * config.width


def _qkv_products(config: AtlasConfig) -> int:
    return config.width * (2 * config.key_inner_width + config.value_inner_width)


def _dense_products(config: AtlasConfig) -> int:
    """Multiplications of a token by the weights of one block."""
    width, key, value = config.width, config.key_inner_width, config.value_inner_width
    products = 3 * width * config.feed_forward_width
    if config.layout != "swa":
        products += _qkv_products(config) + width * value + value * width
        products += (width + 2 * key) * 4 * config.memory.num_heads
    if config.attention is not None:
        products += value * width
        products += _qkv_products(config) if config.layout != "mag" else 0
    if config.layout == "mac":
        products += value * (key + value) + width * key
    return products


def _attention_products(config: AtlasConfig, chunk_size: int) -> float:
    """Multiplications of one token's attention by what it looks at, and its share of the persistent tokens'
    projections, which are made anew for every `chunk_size` tokens."""
    if config.attention is None:
        return 0
    key, value = config.key_inner_width, config.value_inner_width
    products: float = config.attention.window * (key + value)
    if config.layout == "mac":
        products += (config.attention.window + config.attention.num_persistent) * (key + value)
        products += config.attention.num_persistent * _qkv_products(config) / chunk_size
    return products


def _chunk_products(config: AtlasConfig, index: int) -> float:
    """Multiplications of one token in the chunk form of one block's memory."""
    if config.layout == "swa":
        return 0
    memory = config.layer_memory(index)
    return memory.num_heads * (_memory_products(memory) + _look_up_products(config))


def _recurrent_products(config: AtlasConfig, index: int) -> float:
    """The same in recurrent form."""
    if config.layout == "swa":
        return 0
    memory = config.layer_memory(index)
    size = memory.memory_chunk_size
    key_features = _columns(memory) * _feature_products(memory)
    products = _feature_products(memory) + _read_products(memory) + _commit_products(memory) / size
    if memory.read_granularity == "token":
        # The open chunk is worked out again, up to the token.
        products += key_features + _update_products(memory, rows=size, bounded_rows=1)
    else:
        products += (key_features + _update_products(memory, rows=1)) / size
    if memory.query_projection == "keys":
        products += projection_products(memory.key_width, num_tokens=1)
    return memory.num_heads * (products + _look_up_products(config))


def _look_up_products(config: AtlasConfig) -> int:
    """What one head of `mac` reads for its attention."""
    return _feature_products(config.memory) + _weights(config.memory) if config.layout == "mac" else 0


def memory_flops_per_token(config: MemoryConfig) -> float:
    """The share of one layer's memory, all heads: its features, and the chunk form's reads and writes."""
    return 2.0 * config.num_heads * _memory_products(config)


def _weights(config: MemoryConfig) -> int:
    """Entries of all matrices of one head's memory: the multiplications of one read."""
    return sum(inputs * outputs for inputs, outputs in memory_network(config).shapes().values())


def _memory_products(config: MemoryConfig) -> float:
    """Multiplications of one head a token, in chunk form."""
    size = config.memory_chunk_size
    reads_anchor = config.read_granularity == "chunk" and config.muon_granularity == "chunk"
    a_chunk = _update_products(config, rows=1 if reads_anchor else size) + _commit_products(config)
    products = 2 * _feature_products(config) + _read_products(config) + a_chunk / size
    if config.query_projection == "keys":
        products += projection_products(config.key_width)
    return products


def _columns(config: MemoryConfig) -> int:
    """Tokens whose gradients are in a chunk's update: its own and the window's before it."""
    return config.omega_window - 1 + config.memory_chunk_size


def _read_products(config: MemoryConfig) -> float:
    """Multiplications of one token's reading, its features and the chunk's update given."""
    carries_momentum = config.max_momentum_decay > 0
    products = _weights(config)
    if config.read_granularity == "token" and config.muon_granularity == "chunk":
        for inputs, outputs in memory_network(config).shapes().values():
            products += _columns(config) * (inputs + outputs) + (inputs * outputs if carries_momentum else 0)
            products += inputs * outputs if config.retention_target == "initial" else 0
    return products


def _update_products(config: MemoryConfig, rows: int, bounded_rows: int | None = None) -> float:
    """Multiplications of a chunk's update, the keys' features given: the coefficients of `rows` of its tokens, their
    bounds, of as many unless told, and the gradients of all tokens; of muon per token all its memories."""
    size, columns = config.memory_chunk_size, _columns(config)
    matrices = list(memory_network(config).shapes().items())
    carries_momentum = config.max_momentum_decay > 0
    if config.muon_granularity == "token":
        rows = size
    products: float = rows * size * columns + (rows * size * (size + columns) if carries_momentum else 0)
    if config.step == "bounded":
        for rows_width in _curvature_widths(config):
            products += columns * columns * (rows_width + (bounded_rows or rows))
    products += columns * _weights(config)
    products += columns * sum(inputs * outputs for name, (inputs, outputs) in matrices if name == "w_out")
    if config.network == "gated_mlp" and config.step == "bounded":
        products += columns * sum(inputs * outputs for name, (inputs, outputs) in matrices if name != "w_out")
    if config.muon_granularity == "token":
        for _, (inputs, outputs) in matrices:
            every_step = columns * inputs * outputs + newton_schulz_products(config.newton_schulz, inputs, outputs)
            products += size * (every_step + size * inputs * outputs)
    return products


def _commit_products(config: MemoryConfig) -> float:
    """Multiplications of a chunk's commit, its update given."""
    if config.muon_granularity == "token":
        return 0
    products: float = 0
    for inputs, outputs in memory_network(config).shapes().values():
        written = _columns(config) * inputs * outputs
        if config.rule == "muon":
            products += written + newton_schulz_products(config.newton_schulz, inputs, outputs)
        else:
            products += written * (2 if config.max_momentum_decay > 0 else 1)
    return products


def _feature_products(config: MemoryConfig) -> int:
    if config.feature_degree == 1:
        return 0
    width = config.feature_width
    projection = config.key_width * width if width < config.key_width else 0
    degrees = range(2, config.feature_degree + 1)
    return projection + sum(degree * width * num_monomials(config, degree) for degree in degrees)


def _curvature_widths(config: MemoryConfig) -> list[int]:
    """Widths of the rows of each term of the network's `curvature`."""
    hidden = [outputs for name, (inputs, outputs) in memory_network(config).shapes().items() if name == "w_in"]
    return [num_features(config), *hidden]

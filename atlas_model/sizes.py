"""What a configuration costs, computed from it alone: parameters, and floating-point operations of a token's prefill.

The bytes of a session are `atlas_model.state.session_num_bytes`. Operations are those of the matrix products, two for
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
    return 2.0 * (config.num_layers * _dense_products(config) + _logits_products(config))


def prefill_flops_per_token(config: AtlasConfig) -> float:
    """Operations of reading one token among many in chunk form, its logits included.

    Attention is counted at a full window, though the tokens are laid out in blocks whose corners are masked.
    """
    layers = sum(
        _dense_products(config) + _attention_products(config, index) + _chunk_products(config, index)
        for index in range(config.num_layers)
    )
    return 2.0 * (layers + _logits_products(config))


def _logits_products(config: AtlasConfig) -> int:
    return config.vocab_size * config.width


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


def _attention_products(config: AtlasConfig, index: int) -> float:
    """Multiplications of one token's attention by what it looks at, and by the persistent tokens' projections."""
    if config.attention is None:
        return 0
    key, value = config.key_inner_width, config.value_inner_width
    products: float = config.attention.window * (key + value)
    if config.layout == "mac":
        products += (config.attention.window + config.attention.num_persistent) * (key + value)
        products += (
            config.attention.num_persistent * _qkv_products(config) / config.layer_memory(index).memory_chunk_size
        )
    return products


def _chunk_products(config: AtlasConfig, index: int) -> float:
    """Multiplications of one token in the chunk form of one block's memory."""
    if config.layout == "swa":
        return 0
    memory = config.layer_memory(index)
    products = memory.num_heads * _memory_products(memory)
    if config.layout == "mac":
        products += memory.num_heads * (_feature_products(memory) + _weights(memory))
    return products


def memory_flops_per_token(config: MemoryConfig) -> float:
    """The share of one layer's memory, all heads: its features, and the chunk form's reads and writes."""
    return 2.0 * config.num_heads * _memory_products(config)


def _weights(config: MemoryConfig) -> int:
    """Entries of all matrices of one head's memory: the multiplications of one read."""
    return sum(inputs * outputs for inputs, outputs in memory_network(config).shapes().values())


def _memory_products(config: MemoryConfig) -> float:
    """Multiplications of one head a token."""
    size, columns = config.memory_chunk_size, config.omega_window - 1 + config.memory_chunk_size
    reads_anchor = config.read_granularity == "chunk"
    rows = 1 if reads_anchor and config.muon_granularity == "chunk" else size
    matrices = list(memory_network(config).shapes().items())

    products = 2 * size * _feature_products(config)
    if config.query_projection == "keys":
        products += size * projection_products(config.key_width)
    carries_momentum = config.max_momentum_decay > 0
    products += rows * size * columns + (rows * size * (size + columns) if carries_momentum else 0)
    if config.step == "bounded":
        for rows_width in _curvature_widths(config):
            products += columns * columns * rows_width + rows * columns * columns
    products += columns * _weights(config)
    products += columns * sum(inputs * outputs for name, (inputs, outputs) in matrices if name == "w_out")
    if config.network == "gated_mlp" and config.step == "bounded":
        products += columns * sum(inputs * outputs for name, (inputs, outputs) in matrices if name != "w_out")
    for _, (inputs, outputs) in matrices:
        matrix = inputs * outputs
        if config.muon_granularity == "token":
            every_step = columns * matrix + newton_schulz_products(config.newton_schulz, inputs, outputs)
            products += size * (every_step + size * matrix + matrix)
            continue
        products += size * matrix
        if not reads_anchor:
            products += size * columns * (inputs + outputs) + (size * matrix if carries_momentum else 0)
            products += size * matrix if config.retention_target == "initial" else 0
        if config.rule == "muon":
            products += columns * matrix + newton_schulz_products(config.newton_schulz, inputs, outputs)
        else:
            products += columns * matrix * (2 if carries_momentum else 1)
    return products / size


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

"""The peers' shapes, from our configuration alone: same width, depth, vocabulary, heads and feed-forward weights.

A model with the memory's state and none of its parameters cannot have the same number of them; `num_parameters` of each
shape is computed here, so that a test can say how far apart they are.
"""

from __future__ import annotations

from typing import Any

from atlas_model.config import AtlasConfig

MAX_NUM_POSITIONS = 2**20


def llama_shape(config: AtlasConfig, heads_per_key: int = 1) -> dict[str, Any]:
    """Arguments of transformers' LlamaConfig. heads_per_key: how many heads share keys and values, as far as there are
    so many."""
    assert config.attention is not None
    num_heads = config.attention.num_heads
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.feed_forward_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": max(1, num_heads // heads_per_key),
        "head_dim": config.key_inner_width // num_heads,
        "max_position_embeddings": MAX_NUM_POSITIONS,
        "tie_word_embeddings": True,
    }


def llama_num_parameters(shape: dict[str, Any]) -> int:
    """Of `llama_shape`: a table that is also the output layer, and layers of gated feed-forward and attention."""
    width = shape["hidden_size"]
    heads = 2 * shape["num_attention_heads"] + 2 * shape["num_key_value_heads"]
    layer = heads * shape["head_dim"] * width + 3 * width * shape["intermediate_size"] + 2 * width
    return int(shape["vocab_size"] * width + shape["num_hidden_layers"] * layer + width)


def titans_shape(config: AtlasConfig) -> dict[str, Any]:
    """Arguments of titans-pytorch's MemoryAsContextTransformer, in whose words a segment is our attention window.

    Its memory takes a new anchor after each chunk, as ours does, and there are no tokens but the text's.
    """
    assert config.attention is not None
    chunk_size, num_heads = config.memory.memory_chunk_size, config.attention.num_heads
    return {
        "num_tokens": config.vocab_size,
        "dim": config.width,
        "depth": config.num_layers,
        "segment_len": config.attention.window,
        "neural_memory_segment_len": chunk_size,
        "neural_memory_batch_size": chunk_size,
        "dim_head": config.key_inner_width // num_heads,
        "heads": num_heads,
        # The package takes two thirds of it, for its feed-forward is gated.
        "ff_mult": 1.5 * config.feed_forward_width / config.width,
    }

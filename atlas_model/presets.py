"""Named configurations: the paper's sizes (Atlas, Table 7), and the demo that is shipped.

Names are the paper's; parameter counts follow from the widths and are not forced to the name. Each has the widest
second-degree features with which a session stays within its limit (decided: 32 MB at 50M, 64 MB up to 170M, 128, 256
and 512 MB beyond), and from 340M on a matrix for a memory: a memory of two layers would be beyond it with hardly any
features at all. MB are 10^6 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from atlas_model.config import AtlasConfig, AttentionConfig, MemoryConfig

_VOCAB_SIZE = 32_000


def _paper(width: int, num_layers: int, num_heads: int, network: str, feature_width: int) -> AtlasConfig:
    """Muon per chunk beside attention. Feed-forward 8/3 of the width, up to a multiple of 64 (decided here)."""
    head_width = width // num_heads
    return AtlasConfig(
        vocab_size=_VOCAB_SIZE,
        width=width,
        num_layers=num_layers,
        feed_forward_width=-(-8 * width // (3 * 64)) * 64,
        layout="mag",
        memory=MemoryConfig(
            num_heads=num_heads,
            key_width=head_width,
            value_width=head_width,
            network=network,
            rule="muon",
            read_granularity="chunk",
            step="free",
            memory_chunk_size=64,
            omega_window=4,
            feature_degree=2,
            feature_width=feature_width,
        ),
        attention=AttentionConfig(num_heads=num_heads, window=256),
        state_dtype="bfloat16",
    )


DEMO = AtlasConfig(
    vocab_size=4096,
    width=256,
    num_layers=3,
    feed_forward_width=704,
    layout="mag",
    memory=MemoryConfig(
        num_heads=4,
        key_width=64,
        value_width=64,
        network="matrix",
        rule="gd",
        read_granularity="chunk",
        step="bounded",
        memory_chunk_size=16,
        feature_degree=2,
        feature_width=16,
        feature_norm="unit",
        retention="none",
        max_momentum_decay=0.0,
        read_norm_eps=1e-3,
    ),
    attention=AttentionConfig(num_heads=4, window=32),
    conv_width=8,
)

ATLAS_50M = AtlasConfig(
    vocab_size=_VOCAB_SIZE,
    width=512,
    num_layers=8,
    feed_forward_width=2048,
    layout="mag",
    memory=MemoryConfig(num_heads=1, key_width=512, value_width=512, memory_chunk_size=64),
    attention=AttentionConfig(num_heads=4, window=512),
    state_dtype="bfloat16",
)

PRESETS: Mapping[str, AtlasConfig] = {
    "demo": DEMO,
    "atlas-50m": ATLAS_50M,
    "atlas-100m": _paper(640, 10, 10, "mlp", 16),
    "atlas-170m": _paper(768, 12, 16, "mlp", 12),
    "atlas-340m": _paper(1024, 24, 16, "matrix", 28),
    "atlas-760m": _paper(1536, 24, 16, "matrix", 34),
    "atlas-1.3b": _paper(2048, 18, 8, "matrix", 50),
}
SESSION_MEGABYTES: Mapping[str, int] = {
    "demo": 8,
    "atlas-50m": 32,
    "atlas-100m": 64,
    "atlas-170m": 64,
    "atlas-340m": 128,
    "atlas-760m": 256,
    "atlas-1.3b": 512,
}
"""The most that a session of each preset may weigh."""

"""Synthetic checkpoints in the public Atlas-MAG layout: its names and shapes, small widths, random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from atlas_model.importing.layout import Mixing

VOCAB_SIZE, WIDTH, NUM_LAYERS, NUM_HEADS, FEED_FORWARD, RANK = 60, 16, 2, 2, 42, 12
HEAD_WIDTH = WIDTH // NUM_HEADS


def atlas_mag_state(
    mixing: Mixing, *, has_uniform_norms: bool = True, has_output_norm: bool = True, vocab_size: int = VOCAB_SIZE
) -> dict[str, Tensor]:
    """A `model_state_dict`. has_uniform_norms: queries and keys are scaled alike in all dimensions."""
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int, mean: float = 0.0, std: float = 0.3) -> Tensor:
        return mean + std * torch.randn(shape, generator=generator)

    embedding = drawn(vocab_size, WIDTH)
    state = {"tok_emb.weight": embedding, "lm_head.weight": embedding.clone(), "w_init": drawn(WIDTH)}
    state["norm_f.weight"] = drawn(WIDTH, mean=1.0)
    for index in range(NUM_LAYERS):
        block = {f"norm{number}.weight": drawn(WIDTH, mean=1.0) for number in (1, 2)}
        block |= {f"qkv.{name}.weight": drawn(WIDTH, WIDTH) for name in ("w_q", "w_k", "w_v")}
        for name, scale in (("q_norm", 1.3), ("k_norm", 0.8)):
            norm = torch.full((HEAD_WIDTH,), scale)
            block[f"qkv.{name}.weight"] = norm if has_uniform_norms else norm + drawn(HEAD_WIDTH, std=0.1)
        block["w_o.weight"] = drawn(WIDTH, WIDTH)
        block |= {f"ffn.{name}.weight": drawn(FEED_FORWARD, WIDTH) for name in ("w1", "w2")}
        block["ffn.w3.weight"] = drawn(WIDTH, FEED_FORWARD)
        if mixing is not Mixing.ATTENTION:
            memory = {
                "proj_down.weight": drawn(HEAD_WIDTH, WIDTH),
                "poly_norm.weight": drawn(44, mean=1.0),
                "poly_norm.bias": drawn(44),
                "poly_compress.weight": drawn(RANK, 44),
                "w1.weight": drawn(HEAD_WIDTH, 4 * HEAD_WIDTH),
                "w2.weight": drawn(4 * HEAD_WIDTH, RANK),
                "w3.weight": drawn(4 * HEAD_WIDTH, RANK),
                "proj_up.weight": drawn(WIDTH, HEAD_WIDTH),
            }
            if has_output_norm:
                memory |= {"output_norm.weight": drawn(WIDTH, mean=1.0), "output_norm.bias": drawn(WIDTH)}
                memory["output_scale"] = torch.tensor(0.15)
            momentum = {f"momentum_{name.replace('.', '_')}": each * 0.01 for name, each in memory.items()}
            block |= {f"memory.{name}": each for name, each in (memory | momentum).items()}
            block |= {"gamma_gate.gate.0.weight": drawn(6, WIDTH), "gamma_gate.gate.2.weight": drawn(1, 6)}
        if mixing is Mixing.ADDED:
            block["memory_gate"] = torch.tensor([-1.7])
        if mixing is Mixing.GATED:
            block["qk_memory.decay_weights"] = 0.95 ** torch.arange(256.0)
            block["qk_memory.m_persistent"] = 0.1 * torch.eye(WIDTH)
            block["qk_memory.norm_persistent"] = torch.tensor(0.01 * WIDTH)
        state |= {f"blocks.{index}.{name}": each for name, each in block.items()}
    return state

"""One layer: pre-norm, mixer, residual; in `mal` pre-norm, attention, residual; pre-norm, SwiGLU, residual."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from torch.nn.functional import silu

from atlas_model.config import AtlasConfig
from atlas_model.gates import Gates
from atlas_model.mixers import AttentionMixer, Mixer
from atlas_model.state import LayerState


class Block(nn.Module):
    """[B, T, width] -> the same, with the layer's state in and out."""

    def __init__(self, config: AtlasConfig, index: int) -> None:
        super().__init__()
        self.mixer_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mixer = Mixer(config, index)
        self.attention_mixer: AttentionMixer | None = None
        if config.layout == "mal" and config.attention is not None:
            self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
            self.attention_mixer = AttentionMixer(config, config.attention)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.expand = nn.Linear(config.width, 2 * config.feed_forward_width, bias=False)
        self.contract = nn.Linear(config.feed_forward_width, config.width, bias=False)

    def forward(
        self, x: Tensor, state: LayerState, position: Tensor, lengths: Tensor | None, is_step: bool
    ) -> tuple[Tensor, LayerState, Gates]:
        mixed, state, gates = self.mixer(self.mixer_norm(x), state, position, lengths, is_step)
        x = x + mixed
        if self.attention_mixer is not None and state.attention is not None:
            attended, attention = self.attention_mixer(self.attention_norm(x), state.attention, position, lengths)
            x, state = x + attended, replace(state, attention=attention)
        gate, up = self.expand(self.feed_forward_norm(x)).chunk(2, dim=-1)
        return x + self.contract(silu(gate) * up), state, gates

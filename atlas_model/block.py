"""One layer: parts one after the other, each pre-norm, the part, residual.

The layout says which parts there are:

    lmm, mag   mixer                       feed-forward
    mal        mixer, attention            feed-forward
    mac        context attention, mixer    feed-forward
    swa        attention                   feed-forward
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from torch.nn.functional import silu

from atlas_model.changes import Change, Whole
from atlas_model.config import AtlasConfig
from atlas_model.context_attention import ContextAttention
from atlas_model.gates import Gates
from atlas_model.mixers import AttentionMixer, Mixer
from atlas_model.ragged import join_pieces, pieces_by_chunk
from atlas_model.state import LayerState
from atlas_model.state_delta import LayerDelta
from atlas_model.step_places import StepPlaces


class Block(nn.Module):
    """[B, T, width] -> the same, with the layer's state in and out."""

    def __init__(self, config: AtlasConfig, index: int) -> None:
        super().__init__()
        self.mixer: Mixer | None = None
        if config.layout != "swa":
            self.mixer_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
            self.mixer = Mixer(config, index)
        self.context_attention: ContextAttention | None = None
        self.attention_mixer: AttentionMixer | None = None
        if config.attention is not None and config.layout != "mag":
            self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
            if config.layout == "mac":
                self.context_attention = ContextAttention(config, config.attention)
            else:
                self.attention_mixer = AttentionMixer(config, config.attention)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.expand = nn.Linear(config.width, 2 * config.feed_forward_width, bias=False)
        self.contract = nn.Linear(config.feed_forward_width, config.width, bias=False)

    def forward(
        self, x: Tensor, state: LayerState, position: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, LayerState, Gates | None]:
        """The gates are those of the layer's memory, None where it has none."""
        gates = None
        if self.context_attention is not None:
            x, state, gates = self._mix_by_chunk(x, state, position, lengths)
        elif self.mixer is not None:
            x, state, gates = self._mix(self.mixer, x, state, position, lengths)
        if self.attention_mixer is not None and state.attention is not None:
            attended, attention = self.attention_mixer(self.attention_norm(x), state.attention, position, lengths)
            x, state = x + attended, replace(state, attention=attention)
        return x + self._feed_forward(x), state, gates

    def step(self, x: Tensor, state: LayerState, places: StepPlaces) -> tuple[Tensor, LayerDelta]:
        """One token a row, [B, width] -> the same, and what it changes of the state."""
        changes: dict[str, Change] = {}
        if self.context_attention is not None:
            x, state, changes = self._see_context(self.context_attention, x, state, places)
        delta = LayerDelta(changes)
        if self.mixer is not None:
            mixed, delta = self.mixer.step(self.mixer_norm(x), state, places)
            x, delta = x + mixed, LayerDelta(changes | delta.changes, delta.memory_inputs)
        if self.attention_mixer is not None and state.attention is not None:
            attended, seen = self.attention_mixer.step(self.attention_norm(x), state.attention, places)
            x, delta = x + attended, LayerDelta(delta.changes | seen, delta.memory_inputs)
        return x + self._feed_forward(x), delta

    def _see_context(
        self, attention: ContextAttention, x: Tensor, state: LayerState, places: StepPlaces
    ) -> tuple[Tensor, LayerState, dict[str, Change]]:
        """The first half of a `mac` layer, one token a row."""
        assert self.mixer is not None
        context, state = self.mixer.look_up(self.mixer_norm(x)[:, None], state, None)
        assert state.attention is not None
        assert state.context_convolution is not None
        attended, seen = attention(self.attention_norm(x)[:, None], context, state.attention, places.position, None)
        changes: dict[str, Change] = {
            "context_convolution": Whole(state.context_convolution),
            "attention.keys": Whole(seen.keys),
            "attention.values": Whole(seen.values),
        }
        return x + attended[:, 0], state, changes

    def _feed_forward(self, x: Tensor) -> Tensor:
        gate, up = self.expand(self.feed_forward_norm(x)).chunk(2, dim=-1)
        result: Tensor = self.contract(silu(gate) * up)
        return result

    def _mix(
        self,
        mixer: Mixer,
        x: Tensor,
        state: LayerState,
        position: Tensor,
        lengths: Tensor | None,
    ) -> tuple[Tensor, LayerState, Gates]:
        mixed, state, gates = mixer(self.mixer_norm(x), state, position, lengths)
        return x + mixed, state, gates

    def _mix_by_chunk(
        self, x: Tensor, state: LayerState, position: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, LayerState, Gates]:
        """Memory as context (Titans, section 4.1): a chunk is attended to with what the memory knew before it.

        What attention makes of the chunk is then learned, so the chunks of a call follow one another.
        """
        assert self.mixer is not None
        assert self.context_attention is not None
        pieces = pieces_by_chunk(position, x.shape[1], lengths, self.mixer.memory.config.memory_chunk_size)
        outputs, stacked_gates = [], []
        for piece in pieces:
            part = piece.take(x)
            context, state = self.mixer.look_up(self.mixer_norm(part), state, piece.lengths)
            assert state.attention is not None
            attended, attention = self.context_attention(
                self.attention_norm(part), context, state.attention, piece.position, piece.lengths
            )
            part, state, gates = self._mix(
                self.mixer, part + attended, replace(state, attention=attention), piece.position, piece.lengths
            )
            outputs.append(part)
            stacked_gates.append(gates.stack().transpose(1, 2))
        all_gates = join_pieces(pieces, stacked_gates, x.shape[1])
        return join_pieces(pieces, outputs, x.shape[1]), state, Gates.unstack(all_gates.transpose(1, 2))

"""The language model: embedding, blocks, norm, and the embedding again as the output layer.

`forward` reads many tokens in chunk form (training, prefill), `step` reads one a row (decode); both take a State and
return the next, and agree for any split of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from atlas_model.block import Block
from atlas_model.changes import Change, Rows, Whole
from atlas_model.config import AtlasConfig
from atlas_model.gates import Gates
from atlas_model.mixers import Mixer
from atlas_model.state import State, memory_dtype, state_spec
from atlas_model.state_delta import StateDelta
from atlas_model.step_places import StepPlaces
from atlas_model.tied_embedding import TiedEmbedding
from atlas_model.upload import upload


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """logits: [B, T, vocab_size], or [B, vocab_size] of each row's last token.

    hidden: [B, T, width], which `AtlasModel.logits` makes logits of.
    gates: one for each layer with a memory, each [B, H, T].
    """

    logits: Tensor
    state: State
    hidden: Tensor
    gates: tuple[Gates, ...]


class AtlasModel(nn.Module):
    """A decoder whose blocks hold a memory that is trained while it reads.

    Parameters are float32 (float64 where the configuration's state_dtype is): the memory is per sequence and lives in
    the State, never in a parameter.
    """

    def __init__(self, config: AtlasConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = TiedEmbedding(config.vocab_size, config.width)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.num_layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self._init_linear_layers()
        self.to(memory_dtype(config))

    def _init_linear_layers(self) -> None:
        """Normal weights; what writes into the residual stream starts smaller, the deeper the model.

        Keys start as the queries do (decided here): equal words then match before anything is learned.
        """
        into_residual = (2 * self.config.num_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if name.endswith(("project.weight", "output_gate.weight", "expand.weight")):
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            elif name.endswith(("out.weight", "contract.weight")):
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 * into_residual)
        for mixer in self.mixers:
            queries, keys, _ = mixer.project.weight.split(mixer.widths)
            keys.detach().copy_(queries.detach())

    @property
    def mixers(self) -> list[Mixer]:
        """What holds the memory of each layer; empty in the layout `swa`, which has none."""
        mixers = (cast(Block, block).mixer for block in self.blocks)
        return [mixer for mixer in mixers if mixer is not None]

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def initial_state(self, batch_size: int) -> State:
        """The state of `batch_size` sequences that have read nothing, on the model's device."""
        device = self.embedding.weight.device
        tensors = {
            name: torch.zeros(batch_size, *spec.shape, dtype=spec.dtype, device=device)
            for name, spec in state_spec(self.config).items()
        }
        for index, mixer in enumerate(self.mixers):
            for name, weights in mixer.memory.initial_state(batch_size).memory.items():
                tensors[f"layers.{index}.memory.{name}"] = weights
        return State.from_named_tensors(self.config, tensors)

    def hidden(
        self, token_ids: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State, tuple[Gates, ...]]:
        """Normalised last hidden states [B, T, width], the state after each row's last real token, and the gates."""
        return self.backbone(self.embedding(token_ids), state, lengths)

    def backbone(
        self, embeddings: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State, tuple[Gates, ...]]:
        """The blocks alone, on vectors of any origin, [B, T, width]: the same as `hidden` otherwise."""
        state = self.initial_state(embeddings.shape[0]) if state is None else state
        return self._run(embeddings, state, lengths)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, [..., width] -> [..., vocab_size]."""
        return self.embedding.scores(hidden)

    def forward(
        self,
        token_ids: Tensor,
        state: State | None = None,
        lengths: Tensor | None = None,
        logits: Literal["all", "last"] = "all",
    ) -> ModelOutput:
        """Read int64 [B, T] in chunk form. Rows may stand at any position and have 1..T real tokens (`lengths`).

        state: where the rows stand; None for new sequences. logits: of every token, or of each row's last alone.
        """
        hidden, state, gates = self.hidden(token_ids, state, lengths)
        asked = hidden
        if logits == "last":
            last = torch.full_like(state.position, token_ids.shape[1] - 1) if lengths is None else lengths - 1
            asked = hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
        return ModelOutput(self.logits(asked), state, hidden, gates)

    def step(self, token_ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token a row, int64 [B], in recurrent form: logits [B, vocab_size] and the state after it."""
        logits, delta = self.step_delta(token_ids, state)
        return logits, state.apply(self.commit(delta, state, state.position.tolist()))

    def step_delta(self, token_ids: Tensor, state: State) -> tuple[Tensor, StateDelta]:
        """`step` without the commits: logits, and what every row changes of its state.

        Shapes and operations depend on the batch's size alone, and nothing waits for the device.
        """
        memories = [mixer.memory.config for mixer in self.mixers]
        places = StepPlaces.of(self.config, memories, state.position, self.embedding.weight.dtype)
        x = self.embedding(token_ids)
        changes: dict[str, Change] = {"position": Whole(state.position + 1)}
        memory_inputs = []
        for index, (block, layer) in enumerate(zip(self.blocks, state.layers, strict=True)):
            x, delta = cast(Block, block).step(x, layer, places)
            changes |= {f"layers.{index}.{name}": change for name, change in delta.changes.items()}
            memory_inputs.append(delta.memory_inputs)
        return self.logits(self.norm(x)), StateDelta(changes, tuple(memory_inputs))

    def commit(self, delta: StateDelta, state: State, positions: Sequence[int]) -> StateDelta:
        """The delta of `step_delta(..., state)` with the commits of the rows whose chunk it ends.

        positions: those of the state, of every row, as the host knows them.
        """
        commits: dict[str, Rows] = {}
        ending: dict[int, Tensor] = {}
        for size in {mixer.memory.config.memory_chunk_size for mixer in self.mixers}:
            rows = [row for row, position in enumerate(positions) if (position + 1) % size == 0]
            if rows:
                ending[size] = upload(rows, torch.int64, state.position.device)
        for index, mixer in enumerate(self.mixers if ending else ()):
            memory, inputs = state.layers[index].memory, delta.memory_inputs[index]
            assert memory is not None
            assert inputs is not None
            rows_that_end = ending.get(mixer.memory.config.memory_chunk_size)
            if rows_that_end is not None:
                of_layer = mixer.commit(inputs, memory, rows_that_end)
                commits |= {f"layers.{index}.{name}": each for name, each in of_layer.items()}
        return replace(delta, commits=commits)

    def _run(self, x: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State, tuple[Gates, ...]]:
        num_new = x.shape[1]
        layers, gates = [], []
        for block, layer in zip(self.blocks, state.layers, strict=True):
            x, new_layer, layer_gates = block(x, layer, state.position, lengths)
            layers.append(new_layer)
            if layer_gates is not None:
                gates.append(layer_gates)
        position = state.position + (num_new if lengths is None else lengths)
        return self.norm(x), State(position, tuple(layers)), tuple(gates)

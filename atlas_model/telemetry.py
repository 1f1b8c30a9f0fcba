"""Samples of sequences' memories: a few numbers for each layer, taken from a forward that runs anyhow.

Hooks note what the first tokens of a row show on their way through the memory and the output projections; nothing of
the forward changes, so what is computed is the same bits with a sample and without. A sample of the shipped model costs
as much as the prefill of 25 to 50 tokens on a CPU (`python -m bench cost`). When samples are taken, and where they are
kept, is somebody else's; the details of each head at one moment are in `inspection`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from atlas_model.block import Block
from atlas_model.gates import Gates
from atlas_model.inspection import effective_rank, singular_values, surprise
from atlas_model.memory import MemoryInputs
from atlas_model.memory_networks import Weights
from atlas_model.mixers import Mixer
from atlas_model.model import AtlasModel, ModelOutput
from atlas_model.state import State

_MAX_SAMPLE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class LayerSample:
    """One layer's memory, means over its heads. Every number is finite and a float32's.

    norm, momentum_norm, distance_from_initial: Frobenius', of all matrices of a head together.
    effective_rank, top_singular_value: means over the matrices, before the forward; as in
        `inspection`.
    update_norm: how far a token moves the memory: its change over the chunks that the forward completes, for each of
        their tokens; None when it completes none.
    token_gate, retention, inner_lr, momentum_decay: means over the first tokens. Of retention, global_retention is the
        constant part.
    surprise: mean inner loss of what the memory, as it was before the forward, answers to the keys of the first tokens.
    memory_share: the memory's share of what it and the attention add to the residual stream, by their norms; 1 where
        there is no attention, None in a layout whose branches are not added.
    """

    layer: int
    norm: float
    momentum_norm: float
    distance_from_initial: float
    effective_rank: float
    top_singular_value: float
    update_norm: float | None
    token_gate: float
    retention: float
    global_retention: float
    inner_lr: float
    momentum_decay: float
    surprise: float
    memory_share: float | None


class MemoryRecording:
    """Notes what the memories of some rows show during the one forward that runs inside `with`.

    num_tokens: row -> how many tokens it reads in that forward; the first 64 are looked at. Without rows it does
    nothing. The model must be run by one thread alone meanwhile.
    """

    def __init__(self, model: AtlasModel, num_tokens: Mapping[int, int]) -> None:
        self._model = model
        self._num_tokens = dict(num_tokens)
        self._records: list[_Record] = []
        self._hooks: list[RemovableHandle] = []

    @property
    def rows(self) -> tuple[int, ...]:
        return tuple(self._num_tokens)

    def __enter__(self) -> Self:
        looked_at = {row: slice(min(count, _MAX_SAMPLE_TOKENS)) for row, count in self._num_tokens.items()}
        for block in (cast(Block, each) for each in self._model.blocks if looked_at):
            if block.mixer is None:
                continue
            record = _Record(block.mixer, looked_at)
            self._records.append(record)
            self._hooks.append(block.mixer.memory.register_forward_hook(record.on_memory))
            self._hooks.append(block.mixer.out.register_forward_hook(record.on_out))
            if block.attention_mixer is not None:
                self._hooks.append(block.attention_mixer.out.register_forward_hook(record.on_attention_out))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @torch.inference_mode()
    def sample(self, row: int, before: State, output: ModelOutput) -> tuple[LayerSample, ...] | None:
        """The layers of one recorded row; `before` and `output` are the forward's state and result.

        None without a memory, and when a number is not finite, as in a memory that has diverged.
        """
        num_tokens, layout = self._num_tokens[row], self._model.config.layout
        position = int(before.position[row])
        layers: list[dict[str, Tensor | None]] = []
        memories = ([layer.memory for layer in each.layers if layer.memory] for each in (before, output.state))
        for record, state, new_state, gates in zip(self._records, *memories, output.gates, strict=True):
            old, new = ({name: each[row] for name, each in x.memory.items()} for x in (state, new_state))
            if not all(bool(weights.isfinite().all()) for weights in old.values()):
                return None
            size = record.mixer.memory.config.memory_chunk_size
            num_committed = (position % size + num_tokens) // size * size
            # In `mac` a memory is run chunk by chunk, and what it was given first was the rest of one.
            num_given = min(num_tokens, size - position % size) if layout == "mac" else num_tokens
            momentum = {name: each[row] for name, each in state.momentum.items()}
            layers.append(
                {
                    **_size(record.mixer, old, momentum),
                    "update_norm": _distance(new, old) / num_committed if num_committed else None,
                    **_gate_means(gates, row, num_tokens),
                    "global_retention": record.mixer.gate_maps.global_retention,
                    "surprise": record.surprise(row, old, num_given),
                    "memory_share": record.memory_share(row, layout),
                }
            )
        if not layers:
            return None
        means = torch.stack([each.mean().float() for layer in layers for each in layer.values() if each is not None])
        if not bool(means.isfinite().all()):
            return None
        # One read from the device, in the order of the stack.
        told = iter(means.tolist())
        named: list[dict[str, Any]] = [
            {name: None if each is None else next(told) for name, each in layer.items()} for layer in layers
        ]
        return tuple(LayerSample(layer=index, **numbers) for index, numbers in enumerate(named))


@torch.inference_mode()
def sample_memory(model: AtlasModel, state: State, token_ids: Tensor) -> tuple[LayerSample, ...] | None:
    """A sample of a state of one row that is about to read `token_ids`, int64 [T]. Reads them, and forgets it."""
    with MemoryRecording(model, {0: len(token_ids)}) as recording:
        output = model(token_ids[None], state, logits="last")
    return recording.sample(0, state, output)


class _Record:
    """What passes through one block: of each row, the first tokens alone, copied, so that the rest can be freed.

    In `mac` a block runs its memory several times; the first time counts.
    """

    def __init__(self, mixer: Mixer, looked_at: Mapping[int, slice]) -> None:
        self.mixer = mixer
        self._looked_at = looked_at
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._branches: dict[int, Tensor] = {}
        self._mixed: dict[int, Tensor] = {}
        self._attended: dict[int, Tensor] = {}

    def on_memory(self, _: nn.Module, arguments: tuple[Any, ...], __: object) -> None:
        inputs: MemoryInputs = arguments[0]
        if self._keys:
            return
        self._keys = {row: inputs.keys[row, :, tokens].clone() for row, tokens in self._looked_at.items()}
        self._values = {row: inputs.values[row, :, tokens].clone() for row, tokens in self._looked_at.items()}

    def on_out(self, _: nn.Module, arguments: tuple[Tensor, ...], mixed: Tensor) -> None:
        self._branches, self._mixed = self._first_tokens(arguments[0]), self._first_tokens(mixed)

    def on_attention_out(self, _: nn.Module, __: tuple[Tensor, ...], attended: Tensor) -> None:
        self._attended = self._first_tokens(attended)

    def surprise(self, row: int, memory: Weights, num_tokens: int) -> Tensor:
        """[H, T], of the first tokens, at most `num_tokens`."""
        keys, values = (each[row][:, :num_tokens] for each in (self._keys, self._values))
        return surprise(self.mixer.memory.rule(), memory, keys, values)

    def memory_share(self, row: int, layout: str) -> Tensor | None:
        """[T]; see LayerSample."""
        mixed = self._mixed[row]
        if layout == "lmm":
            return torch.ones_like(mixed[:, 0])
        if layout == "mag":
            # What goes into `out` is the attention, then the memory, of equal width.
            attended, _ = self._branches[row].chunk(2, dim=-1)
            attention = linear(attended, self.mixer.out.weight[:, : attended.shape[-1]])
            return _share(mixed - attention, attention)
        if layout == "mal":
            return _share(mixed, self._attended[row])
        return None

    def _first_tokens(self, x: Tensor) -> dict[int, Tensor]:
        return {row: x[row, tokens].clone() for row, tokens in self._looked_at.items()}


def _size(mixer: Mixer, memory: Weights, momentum: Weights) -> dict[str, Tensor]:
    """By the names of LayerSample; each is a number a head, or one for each of its matrices."""
    values = [singular_values(weights) for weights in memory.values()]
    norm = _norm(memory)
    return {
        "norm": norm,
        "momentum_norm": _norm(momentum) if momentum else torch.zeros_like(norm),
        "distance_from_initial": _distance(memory, dict(mixer.memory.initial)),
        "effective_rank": torch.stack([effective_rank(each) for each in values]),
        "top_singular_value": torch.stack([each[:, 0] for each in values]),
    }


def _gate_means(gates: Gates, row: int, num_tokens: int) -> dict[str, Tensor]:
    stacked = gates.stack()[row, :, : min(num_tokens, _MAX_SAMPLE_TOKENS)]
    means = Gates.unstack(stacked.mean((0, 1)))
    return {
        "token_gate": means.token_gate,
        "retention": means.retention,
        "inner_lr": means.inner_lr,
        "momentum_decay": means.momentum_decay,
    }


def _norm(weights: Weights) -> Tensor:
    """Of each head's matrices together: [H, rows, columns] each -> [H]."""
    return torch.stack([each.square().sum((-2, -1)) for each in weights.values()]).sum(0).sqrt()


def _distance(weights: Weights, others: Weights) -> Tensor:
    return _norm({name: each - others[name] for name, each in weights.items()})


def _share(part: Tensor, rest: Tensor) -> Tensor:
    """[..., width] twice -> [...], of norms; 0 where both are 0."""
    part, rest = part.norm(dim=-1), rest.norm(dim=-1)
    return part / (part + rest).clamp(min=torch.finfo(part.dtype).tiny)

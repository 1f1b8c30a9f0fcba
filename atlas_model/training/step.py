"""One optimiser step's loss and metrics, in parts that add up: over the parts of a batch, and over processes.

Promises: the loss of a step is the mean over the weight of all its targets, however its rows are divided; gradients go
through the memory's own learning. Leaves which rows, which targets and what moves the weights to the loop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from atlas_model.gates import Gates
from atlas_model.model import AtlasModel
from atlas_model.state import State
from atlas_model.training.data import Batch, score_answers
from atlas_model.training.processes import Processes

_SUMS = (
    *("num_parts", "text_loss", "weight", "written", "num_asked", "num_right"),
    *("open_on_prose", "num_prose", "open_elsewhere", "num_elsewhere"),
)
_LEAST_WEIGHT = 1e-9


class SegmentLoss(nn.Module):
    """The loss of some rows' segment, as a module, so that DistributedDataParallel can hold it.

    autocasts: whether matrix products outside the memory are bfloat16's. The model may be exchanged for another one
    that has the very same parameters.
    """

    def __init__(self, model: AtlasModel, autocasts: bool) -> None:
        super().__init__()
        self.model = model
        self._autocasts = autocasts

    def forward(
        self, batch: Batch, weights: Tensor, state: State | None, text_scale: float, write_penalty: float
    ) -> tuple[Tensor, State, Tensor]:
        """The loss [], the rows' state after the segment and the sums that `metrics` reads, both without gradients.

        weights: of the targets, [B, T]. state: where the rows stood, without gradients; rows that begin an episode
        start from the learned memory. text_scale multiplies the sum of weighted cross-entropies; write_penalty the
        mean over all tokens of how far token_gates are open.
        """
        model = self.model
        scored = weights > 0
        with torch.autocast(weights.device.type, dtype=torch.bfloat16, enabled=self._autocasts):
            hidden, after, gates = model.hidden(batch.token_ids, _state_before(model, batch, state))
            logits = model.logits(hidden[scored])
        losses = cross_entropy(logits.to(model.embedding.weight.dtype), batch.targets[scored], reduction="none")
        text_loss = (losses * weights[scored]).sum()
        open_share = _open_share(gates)
        loss = text_scale * text_loss + write_penalty * open_share
        with torch.no_grad():
            losses_and_weights = {
                "text_loss": text_loss,
                "weight": weights.sum(dtype=torch.float64),
                "written": open_share,
            }
            sums = _sums(losses_and_weights, model, batch, hidden, gates, after)
        return loss, after.detach(), sums


def backward(
    loss_module: nn.Module,
    processes: Processes,
    batch: Batch,
    weights: Tensor,
    state: State | None,
    num_parts: int,
    write_penalty: float,
) -> tuple[State, Tensor]:
    """Add the gradients of the step's loss over all rows of all processes, this one's read in num_parts parts.

    loss_module: a SegmentLoss, as `processes` joined it. Returns where the rows stand after the segment, and the sums
    over all parts and processes.
    """
    # A mean of the parts' and processes' means would weigh a target more where fewer stand beside it.
    weight = float(processes.sum(weights.sum(dtype=torch.float64)))
    # Gradients of parts add up; those of processes are averaged.
    text_scale = processes.count / max(weight, _LEAST_WEIGHT)
    part_num_rows = len(weights) // num_parts
    states, sums = [], []
    for part in range(num_parts):
        rows = slice(part * part_num_rows, (part + 1) * part_num_rows)
        with processes.apart(loss_module) if part < num_parts - 1 else nullcontext():
            loss, part_state, part_sums = loss_module(
                batch.rows(rows), weights[rows], _rows(state, rows), text_scale, write_penalty / num_parts
            )
            loss.backward()
        states.append(part_state)
        sums.append(part_sums)
    return State.concatenate(states), processes.sum(torch.stack(sums).sum(dim=0))


def metrics(sums: Tensor) -> dict[str, float]:
    """A step's metrics from the sums that `backward` returns.

    loss: per weight of a target. written: how far token_gates are open. open_on_prose, open_elsewhere: the share of
    layers, heads and tokens that write anything. memory_rms: of the entries of the memories, the mean over layers; 0
    without any.
    """
    values = sums.tolist()
    named = dict(zip(_SUMS, values[: len(_SUMS)], strict=True))
    memory_squares = [each / named["num_parts"] for each in values[len(_SUMS) :]]
    return {
        "num_asked": named["num_asked"],
        "num_right": named["num_right"],
        "open_on_prose": named["open_on_prose"] / max(1.0, named["num_prose"]),
        "open_elsewhere": named["open_elsewhere"] / max(1.0, named["num_elsewhere"]),
        "memory_rms": sum(map(math.sqrt, memory_squares)) / max(1, len(memory_squares)),
        "loss": named["text_loss"] / max(named["weight"], _LEAST_WEIGHT),
        "written": named["written"] / named["num_parts"],
    }


def _rows(state: State | None, rows: slice) -> State | None:
    return None if state is None else state.map(lambda tensor: tensor[rows])


def _state_before(model: AtlasModel, batch: Batch, carried: State | None) -> State | None:
    """The carried state, with the rows that begin an episode at the learned start."""
    if carried is None or bool(batch.starts_episode.all()):
        return None
    return carried.replace_rows(batch.starts_episode, model.initial_state(len(batch.token_ids)))


def _open_share(gates: tuple[Gates, ...]) -> Tensor:
    """How far token_gates are open, counted up to a half; the mean over all tokens, heads and layers.

    A fact is written at full strength only where its neighbours in the chunk do not write, and a memory lasts as long
    as nothing else is written at all. Beyond a half the task alone decides: the strength of one write costs nothing.
    token_gate alone, and not what it writes: were inner_lr shut with it, each would take the other's gradient away,
    and what shut on prose would hardly open again for a fact.
    """
    return torch.stack([each.token_gate.clamp(max=0.5).mean() for each in gates] or [torch.zeros(())]).mean()


def _sums(
    known: Mapping[str, Tensor],
    model: AtlasModel,
    batch: Batch,
    hidden: Tensor,
    gates: tuple[Gates, ...],
    state: State,
) -> Tensor:
    """`_SUMS`, then the mean square of each layer's memory tensors; float64."""
    is_answer = batch.answer_index >= 0
    predicted = torch.full_like(batch.targets, -1)
    predicted[is_answer] = model.logits(hidden[is_answer]).argmax(-1)
    scores = score_answers(batch, predicted)
    prose = batch.prose_mask
    is_open = [(each.token_gate * each.inner_lr > 0).double().mean(dim=1) for each in gates]
    open_share = torch.stack(is_open or [torch.zeros(prose.shape, device=prose.device)]).mean(dim=0)
    named = {
        **known,
        "num_parts": 1,
        "num_asked": sum(scores.num_asked.values()),
        "num_right": sum(scores.num_right.values()),
        "open_on_prose": open_share[prose].sum(),
        "num_prose": prose.sum(),
        "open_elsewhere": open_share[~prose].sum(),
        "num_elsewhere": (~prose).sum(),
    }
    values = [named[name] for name in _SUMS]
    memories = [layer.memory.memory for layer in state.layers if layer.memory is not None]
    values += [weights.double().square().mean() for memory in memories for weights in memory.values()]
    return torch.stack([torch.as_tensor(each, dtype=torch.float64, device=hidden.device) for each in values])

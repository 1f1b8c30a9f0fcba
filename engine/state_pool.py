"""The slots: one preallocated State with a row for every running sequence.

A row is made by `load`, from a state on the host, and by nothing else but the model's own steps; a session that goes on
is therefore rebuilt by the same function whether its state comes from this process or from a store. A row that nobody
owns is all zeros. Who owns which, and when, is decided elsewhere.
"""

import heapq
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from atlas_model.config import AtlasConfig
from atlas_model.state import State, state_spec


class StatePool:
    """`num_slots` rows on `device`."""

    def __init__(self, config: AtlasConfig, num_slots: int, device: torch.device) -> None:
        self._config = config
        self._device = device
        self._tensors: dict[str, Tensor] = {
            name: torch.zeros((num_slots, *spec.shape), dtype=spec.dtype, device=device)
            for name, spec in state_spec(config).items()
        }
        self._rows = State.from_named_tensors(config, self._tensors)
        self.num_slots = num_slots
        # A heap: the lowest slots are used first, so that running ones tend to be neighbours.
        self._free = list(range(num_slots))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def free_slots(self) -> frozenset[int]:
        return frozenset(self._free)

    def acquire(self) -> int:
        """A zeroed slot. There must be one."""
        return heapq.heappop(self._free)

    def release(self, slot: int) -> None:
        """Zeroes the slot and gives it back."""
        assert slot not in self._free
        for tensor in self._tensors.values():
            tensor[slot].zero_()
        heapq.heappush(self._free, slot)

    def load(self, slot: int, state: State) -> None:
        """Overwrites the slot with a state of one row, on any device."""
        self._write([slot], state.named_tensors())

    def copy(self, slot: int) -> State:
        """A state of one row, on the device, that the slot's later steps do not touch."""
        return self._rows.gather(torch.tensor([slot], device=self._device))

    def export(self, slot: int) -> State:
        """A state of one row on the CPU, of its own."""
        return self.copy(slot).to("cpu")

    def read(self, slots: Sequence[int]) -> State:
        """The rows in this order, for one step of the model: of neighbouring slots it is a view and no copy."""
        if _are_neighbours(slots):
            return self._rows.map(lambda tensor: tensor[slots[0] : slots[-1] + 1])
        return self._rows.gather(torch.tensor(slots, device=self._device))

    def write(self, slots: Sequence[int], state: State, read: State) -> None:
        """Overwrites the rows, that were `read` before the step, in this order. A tensor that the step returned as it
        was costs nothing: between the ends of chunks those are memory and momentum, nearly all of a state."""
        before = read.named_tensors()
        self._write(
            slots, {name: tensor for name, tensor in state.named_tensors().items() if tensor is not before[name]}
        )

    def is_zeroed(self, slot: int) -> bool:
        return not any(bool(tensor[slot].any()) for tensor in self._tensors.values())

    def _write(self, slots: Sequence[int], tensors: Mapping[str, Tensor]) -> None:
        # Before the first write, because a copy would broadcast or convert what does not fit.
        for name, tensor in tensors.items():
            target = self._tensors[name]
            assert (tensor.shape, tensor.dtype) == ((len(slots), *target.shape[1:]), target.dtype), name
        rows = torch.tensor(slots, device=self._device)
        for name, tensor in tensors.items():
            target = self._tensors[name]
            # A view of the pool itself, shifted or not, must not be read while it is written.
            source = tensor.clone() if _share_storage(tensor, target) else tensor.to(self._device)
            if _are_neighbours(slots):
                target[slots[0] : slots[-1] + 1].copy_(source)
            else:
                target.index_copy_(0, rows, source)


def _are_neighbours(slots: Sequence[int]) -> bool:
    return list(slots) == list(range(slots[0], slots[0] + len(slots)))


def _share_storage(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def diverged_tensor(state: State, max_norm: float) -> str | None:
    """The name of the first tensor whose norm is not finite or beyond `max_norm`; None when there is none."""
    for name, tensor in state.named_tensors().items():
        if tensor.is_floating_point() and not float(torch.linalg.vector_norm(tensor)) <= max_norm:
            return name
    return None

"""The slots: one preallocated State with a row for every running sequence.

A row is made by `load`, from a state on the host, and by nothing else but the model's own steps; a session that goes on
is therefore rebuilt by the same function whether its state comes from this process or from a store. A row that nobody
owns is all zeros. Who owns which, and when, is decided elsewhere.
"""

from collections.abc import Sequence

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
        self._free = list(reversed(range(num_slots)))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def free_slots(self) -> frozenset[int]:
        return frozenset(self._free)

    def acquire(self) -> int:
        """A zeroed slot. There must be one."""
        return self._free.pop()

    def release(self, slot: int) -> None:
        """Zeroes the slot and gives it back."""
        assert slot not in self._free
        for tensor in self._tensors.values():
            tensor[slot].zero_()
        self._free.append(slot)

    def load(self, slot: int, state: State) -> None:
        """Overwrites the slot with a state of one row, on any device."""
        self._copy_rows(torch.tensor([slot], device=self._device), state)

    def copy(self, slot: int) -> State:
        """A state of one row, on the device, that the slot's later steps do not touch."""
        return self.gather([slot])

    def export(self, slot: int) -> State:
        """A state of one row on the CPU, of its own."""
        return self.gather([slot]).to(torch.device("cpu"))

    def gather(self, slots: Sequence[int]) -> State:
        """A copy of the rows, in this order."""
        return self._rows.gather(torch.tensor(slots, device=self._device))

    def scatter(self, slots: Sequence[int], state: State) -> None:
        """Overwrites the rows, in this order."""
        self._copy_rows(torch.tensor(slots, device=self._device), state)

    def is_zeroed(self, slot: int) -> bool:
        return not any(bool(tensor[slot].any()) for tensor in self._tensors.values())

    def _copy_rows(self, rows: Tensor, state: State) -> None:
        tensors = state.named_tensors()
        assert tensors.keys() == self._tensors.keys()
        # Before the first write, because a copy would broadcast or convert what does not fit.
        for name, tensor in tensors.items():
            target = self._tensors[name]
            assert (tensor.shape, tensor.dtype) == ((len(rows), *target.shape[1:]), target.dtype), name
        for name, tensor in tensors.items():
            self._tensors[name].index_copy_(0, rows, tensor.to(self._device))


def diverged_tensor(state: State, max_norm: float) -> str | None:
    """The name of the first tensor whose norm is not finite or beyond `max_norm`; None when there is none."""
    for name, tensor in state.named_tensors().items():
        if tensor.is_floating_point() and not float(torch.linalg.vector_norm(tensor)) <= max_norm:
            return name
    return None

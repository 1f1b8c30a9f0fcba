"""The slots: one preallocated State with a row for every running sequence, and what the ended ones have left there.

A slot is owned by one running sequence, resident for one exported State, or free and all zeros. A resident row and its
State are the same bits, so whoever starts from that State may start from the row. A State is known by its identity and
by nothing that could be copied along: one that a store has loaded is another object, however equal, and goes through
`load`. A row is therefore as valid as the State, and which State a session goes on from is confirmed where sessions
are. A slot that is needed is taken from the State that was used least recently; one whose State nobody holds any more
is zeroed. Who owns which slot, and when, is decided elsewhere.

A slot is a handle: which row of the tensors it has is the pool's affair. Rows that step together are moved to be
neighbours, once, when the set changes, so that every step of a set reads and writes them where they are.
"""

import heapq
import weakref
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from atlas_model.config import AtlasConfig
from atlas_model.state import State, state_spec
from atlas_model.upload import upload


class StatePool:
    """`num_slots` rows on `device`."""

    def __init__(self, config: AtlasConfig, num_slots: int, device: torch.device) -> None:
        self._config = config
        self._device = device
        self._tensors: dict[str, Tensor] = {
            name: torch.zeros((num_slots, *spec.shape), dtype=spec.dtype, device=device)
            for name, spec in state_spec(config).items()
        }
        self._state = State.from_named_tensors(config, self._tensors)
        self.num_slots = num_slots
        # Of each slot, and the inverse.
        self._rows = list(range(num_slots))
        self._slots = list(range(num_slots))
        self._view: tuple[int, int, State] | None = None
        # A heap: the lowest slots are used first, so that running ones tend to be neighbours from the start.
        self._free = list(range(num_slots))
        # The least recently used first. Weak, so that a slot keeps no session in the host's memory.
        self._residents: OrderedDict[int, weakref.ref[State]] = OrderedDict()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_owned(self) -> int:
        return self.num_slots - len(self._free) - len(self._residents)

    @property
    def num_resident(self) -> int:
        """Slots that somebody could still start from."""
        return sum(state() is not None for state in self._residents.values())

    def acquire(self) -> int:
        """A zeroed slot: a free one, else that of the least recently used State. There must be one."""
        if not self._free:
            slot, _ = self._residents.popitem(last=False)
            self.release(slot)
        return heapq.heappop(self._free)

    def resume(self, state: State, *, is_shared: bool) -> int | None:
        """A slot whose row is `state`; None when none is resident for it.

        It is the resident slot itself; or a copy of it when others may start from the same State (`is_shared`) and
        there is another slot.
        """
        slot = self._resident_slot(state)
        if slot is None:
            return None
        self._residents.move_to_end(slot)
        if not is_shared or not (self._free or len(self._residents) > 1):
            del self._residents[slot]
            return slot
        copy = self.acquire()
        for tensor in self._tensors.values():
            tensor[self._rows[copy]].copy_(tensor[self._rows[slot]])
        return copy

    def keep(self, slot: int, exported: State) -> None:
        """Gives the slot back, resident for the State that was exported from it and is still the same bits."""
        self._residents[slot] = weakref.ref(exported)

    def forget(self, state: State) -> None:
        """Zeroes the slot that is resident for this State, if one is."""
        slot = self._resident_slot(state)
        if slot is not None:
            del self._residents[slot]
            self.release(slot)

    def release_unreachable(self) -> None:
        """Zeroes the slots whose State is gone: nobody can start from them."""
        for slot in [slot for slot, state in self._residents.items() if state() is None]:
            del self._residents[slot]
            self.release(slot)

    def release(self, slot: int) -> None:
        """Zeroes the slot and gives it back."""
        assert slot not in self._free
        assert slot not in self._residents
        for tensor in self._tensors.values():
            tensor[self._rows[slot]].zero_()
        heapq.heappush(self._free, slot)

    def load(self, slot: int, state: State) -> None:
        """Overwrites the slot with a state of one row, on any device."""
        self._write([slot], state.named_tensors())

    def copy(self, slot: int) -> State:
        """A state of one row, on the device, that the slot's later steps do not touch."""
        row = self._rows[slot]
        return self._state.map(lambda tensor: tensor[row : row + 1].clone())

    def export(self, slot: int) -> State:
        """A state of one row on the CPU, of its own."""
        return self.copy(slot).to("cpu")

    def row(self, slot: int) -> int:
        """Where the slot's row is now: what to sort by to have a set in the order of its rows."""
        return self._rows[slot]

    def bring_together(self, slots: Sequence[int], start: int | None = None) -> list[int]:
        """Moves rows until those of the slots are neighbours, from `start` on if it is given; returns the slots in the
        order of their rows.

        Moves as few as can be: a set that has lost one slot or won one costs at most one exchange of two rows.
        """
        rows = sorted(self._rows[slot] for slot in slots)
        count = len(rows)
        if rows[-1] - rows[0] + 1 != count or start not in (None, rows[0]):
            last_start = self.num_slots - count
            if start is None:
                start = max((min(row, last_start) for row in rows), key=lambda at: _num_within(rows, at, at + count))
            taken = set(rows)
            holes = (row for row in range(start, start + count) if row not in taken)
            for row in rows:
                if not start <= row < start + count:
                    self._exchange(row, next(holes))
            rows = list(range(start, start + count))
        return [self._slots[row] for row in rows]

    def read(self, slots: Sequence[int]) -> State:
        """The rows in this order, for one step of the model: of neighbouring rows it is a view and no copy."""
        rows = [self._rows[slot] for slot in slots]
        if not _are_neighbours(rows):
            return self._state.gather(upload(rows, torch.int64, self._device))
        start, stop = rows[0], rows[-1] + 1
        if self._view is None or self._view[:2] != (start, stop):
            self._view = start, stop, self._state.map(lambda tensor: tensor[start:stop])
        return self._view[2]

    def first_rows(self, count: int) -> State:
        """A view of them, whosever they are: to be computed with, and not to be written to."""
        return self._state.map(lambda tensor: tensor[:count])

    def write(self, slots: Sequence[int], state: State, read: State) -> None:
        """Overwrites the rows, that were `read` before the step, in this order. A tensor that the step returned as it
        was costs nothing: between the ends of chunks those are memory and momentum, nearly all of a state."""
        before = read.named_tensors()
        self._write(
            slots, {name: tensor for name, tensor in state.named_tensors().items() if tensor is not before[name]}
        )

    def is_zeroed(self, slot: int) -> bool:
        return not any(bool(tensor[self._rows[slot]].any()) for tensor in self._tensors.values())

    def check_integrity(self, owned: Collection[int]) -> None:
        """Asserts that every slot is one of the `owned` ones, resident for a State whose bits it has, or free and
        zeroed. Reads every slot that is not owned."""
        assert len(owned) == len(set(owned)), "two sequences share a slot"
        assert all(self._slots[row] == slot for slot, row in enumerate(self._rows)), "a row has two slots"
        slots = [*owned, *self._free, *self._residents]
        assert sorted(slots) == list(range(self.num_slots)), "a slot is lost, or is two things at once"
        assert all(self.is_zeroed(slot) for slot in self._free), "a free slot is not zeroed"
        for slot, resident in self._residents.items():
            state = resident()
            assert state is None or self._is_equal(slot, state), "a resident slot is not the state it was kept for"

    def _resident_slot(self, state: State) -> int | None:
        return next((slot for slot, resident in self._residents.items() if resident() is state), None)

    def _is_equal(self, slot: int, state: State) -> bool:
        row = self.export(slot).named_tensors()
        return all(_raw_bytes(row[name]).equal(_raw_bytes(tensor)) for name, tensor in state.named_tensors().items())

    def _write(self, slots: Sequence[int], tensors: Mapping[str, Tensor]) -> None:
        # Before the first write, because a copy would broadcast or convert what does not fit.
        for name, tensor in tensors.items():
            target = self._tensors[name]
            assert (tensor.shape, tensor.dtype) == ((len(slots), *target.shape[1:]), target.dtype), name
        rows = [self._rows[slot] for slot in slots]
        index = upload(rows, torch.int64, self._device)
        for name, tensor in tensors.items():
            target = self._tensors[name]
            # A view of the pool itself, shifted or not, must not be read while it is written.
            source = tensor.clone() if _share_storage(tensor, target) else tensor.to(self._device, non_blocking=True)
            if _are_neighbours(rows):
                target[rows[0] : rows[-1] + 1].copy_(source)
            else:
                target.index_copy_(0, index, source)

    def _exchange(self, row: int, other: int) -> None:
        for tensor in self._tensors.values():
            held = tensor[row].clone()
            tensor[row].copy_(tensor[other])
            tensor[other].copy_(held)
        slot, other_slot = self._slots[row], self._slots[other]
        self._slots[row], self._slots[other] = other_slot, slot
        self._rows[slot], self._rows[other_slot] = other, row


def _raw_bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _are_neighbours(rows: Sequence[int]) -> bool:
    return list(rows) == list(range(rows[0], rows[0] + len(rows)))


def _num_within(rows: Sequence[int], start: int, stop: int) -> int:
    """How many of the sorted rows lie from start on and before stop."""
    return bisect_left(rows, stop) - bisect_left(rows, start)


def _share_storage(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def diverged_tensor(state: State, max_norm: float) -> str | None:
    """The name of the first tensor whose norm is not finite or beyond `max_norm`; None when there is none."""
    tensors = {name: tensor for name, tensor in state.named_tensors().items() if tensor.is_floating_point()}
    # One transfer from the device for all.
    norms = torch.stack([torch.linalg.vector_norm(tensor).double() for tensor in tensors.values()]).tolist()
    return next((name for name, norm in zip(tensors, norms, strict=True) if not norm <= max_norm), None)

"""Room for states in pinned memory of the host, which a device copies to and from by itself, and which is scarce.

A state lies in one piece, as in a snapshot: torch rounds each piece up to a power of two, is slow to get a new one, and
keeps what is freed for the next of its size; all states of a model are of one size.
"""

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from atlas_model.config import AtlasConfig
from atlas_model.state import State
from engine.snapshots.codecs import Codec
from engine.snapshots.layout import layouts_of


class PinnedStates:
    """At most `max_num_bytes`, rounding included, in states of which any tensor is alive. Used by one thread.

    pin_memory: False takes plain memory, which is all that a machine without a device has.
    """

    def __init__(self, config: AtlasConfig, max_num_bytes: int, *, pin_memory: bool) -> None:
        self._config = config
        self._layout = layouts_of(config)[Codec.NONE]
        self._max_num_states = max_num_bytes // (1 << (self._layout.num_bytes - 1).bit_length())
        self._pin_memory = pin_memory
        self._pieces: list[StorageWeakRef] = []

    def allocate(self) -> State | None:
        """A state of one row whose numbers are not defined; None when there is no room for it."""
        self._pieces = [piece for piece in self._pieces if not piece.expired()]
        if len(self._pieces) >= self._max_num_states:
            return None
        piece = torch.empty(self._layout.num_bytes, dtype=torch.uint8, pin_memory=self._pin_memory)
        self._pieces.append(StorageWeakRef(piece.untyped_storage()))
        tensors = {
            place.name: piece[place.offset : place.offset + place.num_bytes].view(place.dtype).view(place.shape)
            for place in self._layout.places
        }
        return State.from_named_tensors(self._config, tensors)

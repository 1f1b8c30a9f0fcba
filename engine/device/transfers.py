"""States on their way from the device to the host, without either waiting for the other.

On CUDA a state leaves the device on a stream of its own, into pinned memory, while the next steps run; only whoever
takes it looks whether it has arrived. On the CPU the same functions copy at once, and nothing is ever on its way.
"""

from dataclasses import dataclass

import torch

from atlas_model.config import AtlasConfig
from atlas_model.state import State
from engine.device.pinned_states import PinnedStates


@dataclass(frozen=True, slots=True)
class HostCopy:
    """`state`, on the host, must not be read before it has arrived."""

    state: State
    event: torch.cuda.Event | None = None

    @property
    def has_arrived(self) -> bool:
        return self.event is None or self.event.query()

    def wait(self) -> State:
        if self.event is not None:
            self.event.synchronize()
        return self.state


class Transfers:
    """States of `config` from `device`; at most `max_pinned_num_bytes` of those that are alive are pinned."""

    def __init__(self, config: AtlasConfig, device: torch.device, max_pinned_num_bytes: int) -> None:
        is_cuda = device.type == "cuda"
        self._device = device
        self._stream = torch.cuda.Stream(device) if is_cuda else None
        self._pinned = PinnedStates(config, max_pinned_num_bytes if is_cuda else 0, pin_memory=is_cuda)

    def to_host(self, row: State) -> HostCopy:
        """Begins to copy a state of one row, to which nobody writes any more. Where no pinned memory is left for it the
        copy is waited for."""
        target = None if self._stream is None else self._pinned.allocate()
        if target is None or self._stream is None:
            return HostCopy(row.to("cpu"))
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for source, place in zip(row.named_tensors().values(), target.named_tensors().values(), strict=True):
                place.copy_(source, non_blocking=True)
                # Whoever frees the row does not know of this stream.
                source.record_stream(self._stream)
            event = torch.cuda.Event()
            event.record(self._stream)
        return HostCopy(target, event)

"""Last outputs of sequences whose states are still on their way to the host.

Whoever has a state may read it, so an output is handed out when its state has arrived, and no step waits for that.
"""

from collections import deque

from engine.device.transfers import HostCopy
from engine.sequence import SequenceOutput


class Departures:
    """In the order in which they were added; copies arrive in theirs."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[HostCopy, SequenceOutput]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, copy: HostCopy, output: SequenceOutput) -> None:
        """output: the one that holds the copy's state."""
        self._waiting.append((copy, output))

    def arrived(self, *, wait: bool) -> list[SequenceOutput]:
        """The outputs whose states have arrived; with `wait` all of them, when they have."""
        outputs = []
        while self._waiting and (wait or self._waiting[0][0].has_arrived):
            copy, output = self._waiting.popleft()
            copy.wait()
            outputs.append(output)
        return outputs

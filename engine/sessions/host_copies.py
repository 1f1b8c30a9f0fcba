"""Sessions kept in this process' memory, so that a turn need not load what the last one has just committed.

Least recently used ones go first, by bytes. A copy is only ever used when the store's head still names its generation:
another server may have committed meanwhile. Used from the event loop alone.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace

from engine.sequence import Tier
from engine.sessions.stored_turns import StoredTurns
from engine.snapshots.snapshot import SessionRecord
from engine.stores.base import Head, SessionKey


@dataclass(frozen=True, slots=True)
class LoadedSession:
    """One committed generation: `record` is None for a session that was created and has read nothing, `stored` when the
    answers have not been loaded.

    tier, seconds: where it was found and how long that took; None for one that was committed just now.
    """

    head: Head
    record: SessionRecord | None
    stored: StoredTurns | None
    tier: Tier | None = None
    seconds: float = 0.0

    @property
    def num_bytes(self) -> int:
        """In this process' memory: the snapshot that the tensors lie in, or they alone where a codec has made less of
        them."""
        tensors = {} if self.record is None else self.record.state.tensors.named_tensors()
        num_bytes = max(self.head.num_bytes, sum(tensor.nbytes for tensor in tensors.values()))
        return num_bytes + self.head.committed.extra_num_bytes


class HostCopies:
    """At most `max_num_bytes` of loaded sessions."""

    def __init__(self, max_num_bytes: int) -> None:
        self._max_num_bytes = max_num_bytes
        self._copies: OrderedDict[SessionKey, LoadedSession] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._copies)

    def get(self, key: SessionKey, head: Head) -> LoadedSession | None:
        """The copy of the generation that `head` names, with this head; a copy of any other generation is dropped."""
        copy = self._copies.get(key)
        if copy is None:
            return None
        if copy.head.generation != head.generation:
            self.drop(key)
            return None
        if copy.head.revision != head.revision:
            self._copies[key] = copy = replace(copy, head=head)
        self._copies.move_to_end(key)
        return copy

    def peek(self, key: SessionKey) -> LoadedSession | None:
        """The copy, current or not, without making use of it."""
        return self._copies.get(key)

    def put(self, key: SessionKey, copy: LoadedSession) -> None:
        self.drop(key)
        self._copies[key] = copy
        self.num_bytes += copy.num_bytes
        while self.num_bytes > self._max_num_bytes:
            _, dropped = self._copies.popitem(last=False)
            self.num_bytes -= dropped.num_bytes

    def drop(self, key: SessionKey) -> None:
        """Forget a session; harmless when there is no copy of it."""
        copy = self._copies.pop(key, None)
        if copy is not None:
            self.num_bytes -= copy.num_bytes

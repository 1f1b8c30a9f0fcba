"""What a commit waits for before it is acknowledged: WAIT for replicas, WAITAOF for append-only files."""

from dataclasses import dataclass
from typing import Any

from engine.errors import StoreUnavailable


@dataclass(frozen=True, slots=True)
class Wait:
    """num_local: None for WAIT; for WAITAOF 1 when the primary's own file has to be on disk, else 0.
    num_replicas: that have the commit in memory (WAIT) or on disk (WAITAOF)."""

    num_replicas: int
    num_local: int | None
    milliseconds: int

    @property
    def command(self) -> tuple[str | int, ...]:
        if self.num_local is None:
            return ("WAIT", self.num_replicas, self.milliseconds)
        return ("WAITAOF", self.num_local, self.num_replicas, self.milliseconds)

    @property
    def trial(self) -> tuple[str | int, ...]:
        """The same command asking for nobody: whether the server has it, and permits it."""
        return ("WAIT", 0, 1) if self.num_local is None else ("WAITAOF", 0, 0, 1)

    @property
    def durability(self) -> str:
        return f"replicated:{self.num_replicas}" if self.num_replicas else "always"

    def check(self, reply: Any) -> None:
        """Raises `StoreUnavailable` when the reply to `command` counts fewer than were asked for."""
        num_local, num_replicas = (0, reply) if self.num_local is None else reply
        if num_local < (self.num_local or 0):
            raise StoreUnavailable("the write is not on Redis' disk yet: ask again")
        if num_replicas < self.num_replicas:
            raise StoreUnavailable(
                f"{num_replicas} of {self.num_replicas} replicas acknowledged the write in time: ask again"
            )

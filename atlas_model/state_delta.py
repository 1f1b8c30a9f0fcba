"""What one token a row changes of a State, so that whoever holds the state in place need not copy it to go on.

A delta is a value, named as `State.named_tensors` is. The step that computes it has static shapes and no control flow
that depends on data; the commits of the rows whose chunk ends are added afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from atlas_model.changes import Change, Rows
from atlas_model.memory import MemoryInputs


@dataclass(frozen=True, slots=True)
class LayerDelta:
    """One layer's changes by name. memory_inputs: what its memory was given; None without a memory."""

    changes: dict[str, Change] = field(default_factory=dict)
    memory_inputs: MemoryInputs | None = None


@dataclass(frozen=True, slots=True)
class StateDelta:
    """changes: of every row. commits: of the rows whose chunk ends, in place of what `changes` says of them.

    memory_inputs: of each layer, as in LayerDelta: what a commit still needs.
    """

    changes: Mapping[str, Change]
    memory_inputs: tuple[MemoryInputs | None, ...]
    commits: Mapping[str, Rows] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """The tensors that are not what they were."""
        return frozenset((*self.changes, *self.commits))

    def of_first_rows(self, count: int, num_rows: int) -> StateDelta:
        """The changes of the first of `num_rows` rows; memory_inputs are those of all, as before."""
        changes: dict[str, Change] = {}
        for name, change in self.changes.items():
            assert not isinstance(change, Rows), "only commits are of some rows"
            changes[name] = change.of_first_rows(count, num_rows)
        return replace(self, changes=changes)

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Write into a state's tensors, in place."""
        for changes in (self.changes, self.commits):
            for name, change in changes.items():
                change.write(tensors[name])

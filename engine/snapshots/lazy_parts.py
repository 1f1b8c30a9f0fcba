"""Bytes that lie scattered in memory, cut into parts that are put together one at a time.

Whoever sends or writes them part by part needs one part of memory beside the state, never a second copy of it all.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from engine.snapshots.buffers import aligned_buffer

_ZEROS = memoryview(bytes(4096))


@dataclass(frozen=True, slots=True)
class Extent:
    """The bytes of `view`, from offset `start` on."""

    start: int
    view: memoryview


class ScatteredBytes:
    """`num_bytes` bytes: the extents', which are in order and do not overlap, and zeros wherever there is none.

    The memory behind the extents is kept alive, and must not be written to as long as this is in use.
    """

    def __init__(self, extents: Sequence[Extent], num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._extents = [extent for extent in extents if extent.view.nbytes]
        self._starts = [extent.start for extent in self._extents]

    def views(self, start: int, end: int) -> Iterator[memoryview]:
        """The bytes from `start` to `end` in order, without a copy."""
        first = max(0, bisect_right(self._starts, start) - 1)
        for extent in self._extents[first:]:
            if extent.start >= end:
                break
            if start < extent.start:
                yield from _zeros(extent.start - start)
                start = extent.start
            view = extent.view[start - extent.start : end - extent.start]
            if view.nbytes:
                yield view
                start += view.nbytes
        yield from _zeros(end - start)


class LazyParts(Sequence[memoryview]):
    """Parts of `part_num_bytes`, the last may be shorter, each read-only and put together whenever it is asked for.

    A part that lies in one extent is a view of it. The same index gives the same bytes every time.
    """

    def __init__(self, scattered: ScatteredBytes, part_num_bytes: int) -> None:
        self.num_bytes = scattered.num_bytes
        self._scattered = scattered
        self._part_num_bytes = part_num_bytes

    def __len__(self) -> int:
        return -(-self.num_bytes // self._part_num_bytes)

    @overload
    def __getitem__(self, index: int) -> memoryview: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[memoryview]: ...

    def __getitem__(self, index: int | slice) -> memoryview | Sequence[memoryview]:
        if isinstance(index, slice):
            return tuple(self._part(each) for each in range(len(self))[index])
        return self._part(range(len(self))[index])

    def _part(self, index: int) -> memoryview:
        start = index * self._part_num_bytes
        end = min(start + self._part_num_bytes, self.num_bytes)
        views = list(self._scattered.views(start, end))
        if len(views) == 1:
            return views[0].toreadonly()
        part = aligned_buffer(end - start)
        start = 0
        for view in views:
            part[start : start + view.nbytes] = view
            start += view.nbytes
        return part.toreadonly()


def _zeros(num_bytes: int) -> Iterator[memoryview]:
    while num_bytes > 0:
        view = _ZEROS[:num_bytes]
        yield view
        num_bytes -= view.nbytes

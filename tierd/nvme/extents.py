# SPDX-License-Identifier: GPL-2.0-or-later
"""Which extents of a spill path are free: constant time, a few bytes an extent.

Each extent has a generation, which counts the changes of hands: odd while it is owned, even while
it is free. It makes the owner's Extent a proof of ownership that ends with giving back, so a second
giving back, or an access by a former owner, is refused however often the extent was reused since.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from .errors import ExtentError, NoSpace

__all__ = ["Extent", "ExtentAllocator"]

_GENERATIONS = 1 << 32  # they wrap: nobody keeps a stale Extent for two thousand million owners


@dataclass(frozen=True, slots=True)
class Extent:
    """A chunk-sized place in a spill path, owned by whoever took it."""

    path: int  #: number of the spill path in its set
    index: int  #: its position, in chunks from the start of the path's data
    generation: int  #: as it was taken; see ExtentAllocator


class ExtentAllocator:
    """Hands out the extents 0 .. count - 1 of spill path number `path`.

    All extents have one size, so nothing can fragment and any free one is as good as any other. The
    one given back last is taken first: it keeps the part of a file that is in use small.
    """

    def __init__(self, path: int, count: int) -> None:
        self.path = path
        self._generations = array("I", bytes(4 * count))
        self._returned = array("I")  # a stack of free extents that were owned before
        self._fresh = 0  # from here on none was ever owned, so no list of them is needed
        self._owned = 0
        self._retired: set[int] = set()  # owned or not, never to be taken again

    @property
    def total(self) -> int:
        """Extents owned and free; a retired one counts until its owner gives it back."""
        return self._owned + self.free

    @property
    def free(self) -> int:
        """Extents that can be taken."""
        return len(self._returned) + len(self._generations) - self._fresh

    @property
    def owned(self) -> int:
        """Extents that are taken and not given back."""
        return self._owned

    @property
    def retired(self) -> int:
        """Extents that failed and are out of use, or will be once they are given back."""
        return len(self._retired)

    def take(self) -> Extent:
        """A free extent, now the caller's. Raises NoSpace."""
        if self._returned:
            index = self._returned.pop()
        elif self._fresh < len(self._generations):
            index = self._fresh
            self._fresh += 1
        else:
            raise NoSpace("every extent is taken")
        generation = (self._generations[index] + 1) % _GENERATIONS
        self._generations[index] = generation
        self._owned += 1
        return Extent(self.path, index, generation)

    def check(self, extent: Extent) -> None:
        """Raises ExtentError unless the extent is owned and this Extent is its owner's."""
        if (
            extent.path != self.path
            or not 0 <= extent.index < len(self._generations)
            or extent.generation % 2 == 0
            or self._generations[extent.index] != extent.generation
        ):
            raise ExtentError(f"{extent} is not owned: it was given back before, or never taken")

    def give_back(self, extent: Extent) -> None:
        """The extent is free again, unless it is retired. Raises ExtentError when it is not owned."""
        self.check(extent)
        self._generations[extent.index] = (extent.generation + 1) % _GENERATIONS
        self._owned -= 1
        if extent.index not in self._retired:
            self._returned.append(extent.index)

    def retire(self, extent: Extent) -> None:
        """Keeps a failing extent from being taken again; its owner still has to give it back."""
        self.check(extent)
        self._retired.add(extent.index)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Which extents of a spill path are free: constant time, a few bytes an extent.

Each extent has a generation, which counts the changes of hands: odd while it is owned, even while
it is free. So giving an extent back twice is refused, and what was encrypted for one owner is never
encrypted in the same way for the next.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping

from .errors import ExtentError, NoSpace

__all__ = ["ExtentAllocator"]

_GENERATIONS = 1 << 32  # they wrap, after two thousand million owners


class ExtentAllocator:
    """Hands out the extents 0 .. count - 1 of a spill path.

    All extents have one size, so nothing can fragment and any free one is as good as any other. The
    one given back last is taken first: it keeps the part of a file that is in use small.
    """

    def __init__(self, count: int) -> None:
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

    def take(self) -> int:
        """A free extent, now the caller's. Raises NoSpace."""
        if self._returned:
            index = self._returned.pop()
        elif self._fresh < len(self._generations):
            index = self._fresh
            self._fresh += 1
        else:
            raise NoSpace("every extent is taken")
        self._generations[index] = (self._generations[index] + 1) % _GENERATIONS
        self._owned += 1
        return index

    def inherit(self, generations: Mapping[int, int]) -> None:
        """Extents that are owned from the start, with their generations, which are odd.

        Before any is taken. Raises ExtentError for an extent or a generation that cannot be.
        """
        assert not self._fresh
        for index, generation in generations.items():
            if not 0 <= index < len(self._generations) or not 0 < generation < _GENERATIONS:
                raise ExtentError(f"there is no extent {index} with generation {generation}")
            if generation % 2 == 0:
                raise ExtentError(f"extent {index} has no owner in generation {generation}")
        for index, generation in generations.items():
            self._generations[index] = generation
        self._fresh = max(generations, default=-1) + 1
        # Downwards, so that the first is taken first.
        self._returned.extend(index for index in reversed(range(self._fresh)) if index not in generations)
        self._owned = len(generations)

    def generation(self, index: int) -> int:
        """Which owner of the extent this is, counted from 1 in steps of 2. Raises ExtentError."""
        if not 0 <= index < len(self._generations) or self._generations[index] % 2 == 0:
            raise ExtentError(f"extent {index} is not owned: it was given back before, or never taken")
        return self._generations[index]

    def give_back(self, index: int) -> None:
        """The extent is free again, unless it is retired. Raises ExtentError when it is not owned."""
        self._generations[index] = (self.generation(index) + 1) % _GENERATIONS
        self._owned -= 1
        if index not in self._retired:
            self._returned.append(index)

    def retire(self, index: int) -> None:
        """Keeps a failing extent from being taken again; its owner still has to give it back."""
        self.generation(index)
        self._retired.add(index)

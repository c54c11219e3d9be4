# SPDX-License-Identifier: GPL-2.0-or-later
"""shim/predict.c: loops keep a fixed part, chains follow what arrived after what."""

from __future__ import annotations

from .pure_c import library

ffi, lib = library()
NONE = 0xFFFFFFFF
NEVER = 0xFFFFFFFFFFFFFFFF


class Cache:
    """VRAM of so many slots run by the predictor alone: demand only, no looking ahead."""

    def __init__(self, slots: int, chunks: int) -> None:
        self.slots = slots
        self.history = ffi.new("struct history[]", chunks)
        self.predictor = ffi.new("struct predictor *")
        lib.predict_init(self.predictor)
        self.resident: set[int] = set()
        self.arrivals = 0

    def use(self, *chunks: int) -> None:
        lib.predict_tick(self.predictor)
        for chunk in chunks:
            if chunk not in self.resident:
                if len(self.resident) == self.slots:
                    self.resident.remove(max(self.resident - set(chunks), key=self.next_use))
                self.resident.add(chunk)
                lib.predict_arrival(self.history + chunk)
                self.arrivals += 1
        for chunk in chunks:
            lib.predict_use(self.predictor, self.history, chunk)

    def next_use(self, chunk: int) -> int:
        return int(lib.predict_next_use(self.predictor, self.history + chunk))


def test_a_loop_keeps_a_fixed_part_and_streams_the_rest() -> None:
    """The bound for a loop of 20 over 15 slots is 5 arrivals a pass; LRU would make 20."""
    cache = Cache(15, 20)
    for _ in range(3):
        for chunk in range(20):
            cache.use(chunk)
    before = cache.arrivals
    for _ in range(10):
        for chunk in range(20):
            cache.use(chunk)
    assert cache.arrivals - before <= 10 * (20 - 15 + 1)


def test_what_every_step_uses_stays() -> None:
    cache = Cache(8, 40)
    for _ in range(3):
        for chunk in range(1, 40):
            cache.use(0, chunk)
    assert 0 in cache.resident
    assert cache.arrivals <= 1 + 3 * 39


def test_used_once_leaves_before_used_in_a_loop() -> None:
    cache = Cache(100, 10)
    for _ in range(3):
        cache.use(0)
        cache.use(1)
    cache.use(2)
    assert cache.next_use(2) == NEVER
    assert cache.next_use(1) < NEVER


def test_brought_in_and_unread_leaves_last() -> None:
    cache = Cache(100, 10)
    for chunk in (0, 1, 0, 1):
        cache.use(chunk)
    lib.predict_arrival(cache.history + 0)
    assert cache.next_use(0) <= cache.next_use(1)


def test_arrivals_are_chained_past_what_stays() -> None:
    """Chunk 0 is part of every step, yet 2 follows 1."""
    cache = Cache(3, 10)
    for _ in range(2):
        for chunk in (1, 2, 3, 4):
            cache.use(0, chunk)
    assert lib.predict_successor(cache.history + 1) == 2
    assert lib.predict_successor(cache.history + 2) == 3
    lib.predict_forget(cache.history + 1)
    assert lib.predict_successor(cache.history + 1) == NONE

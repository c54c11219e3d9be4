# SPDX-License-Identifier: GPL-2.0-or-later
"""Training steps of a transformer, as far as memory goes: PyTorch's allocator in one expandable segment.

    python -m tests.shim.programs.training LAYERS STEPS

Blocks are handed out best fit, split and merged, so that tensors come to lie where larger or smaller ones
were. The launches are those of a forward and backward pass and of AdamW in lists of many tensors. Each
reads and writes all pages of what it names, and finds there what the last one wrote.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import c_uint64
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.shim.softcuda.driver import MIB, Driver

KIB = 1 << 10
PAGE = 4 * KIB
PIECE = 4 * MIB  # mapped at a time
SPLIT = 512  # what is left of a block is a block from so much on
LISTED = {1: 110, 2: 64, 3: 48, 4: 36}  # tensors of each list in a launch
WORK = 10 * MIB  # bytes of a list that a launch works on

cuda = Driver("libcuda.so.1")


@dataclass
class Tensor:
    address: int
    bytes: int
    written: int = 0  # by the launch of this number


class Allocator:
    def __init__(self, most: int) -> None:
        self.base = self.end = cuda.reserve(most)
        self.free_blocks: dict[int, int] = {}  # sizes by address

    def take(self, size: int) -> Tensor:
        size += -size % SPLIT
        fits = [(bytes, address) for address, bytes in self.free_blocks.items() if bytes >= size]
        while not fits:
            cuda.map(self.end, cuda.create(PIECE), PIECE)
            self.give(Tensor(self.end, PIECE))
            self.end += PIECE
            fits = [(bytes, address) for address, bytes in self.free_blocks.items() if bytes >= size]
        bytes, address = min(fits)
        del self.free_blocks[address]
        if bytes > size:
            self.free_blocks[address + size] = bytes - size
        return Tensor(address, size)

    def give(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            self.free_blocks[tensor.address] = tensor.bytes
        merged: dict[int, int] = {}
        last = 0
        for address, bytes in sorted(self.free_blocks.items()):
            if last and last + merged[last] == address:
                merged[last] += bytes
            else:
                merged[address] = bytes
                last = address
        self.free_blocks = merged


@dataclass
class Use:
    tensor: Tensor
    expected: int  # 0: not read
    writes: bool


class Launches:
    """Of kernels that each name some tensors in a structure of addresses."""

    def __init__(self) -> None:
        self.kernels: dict[int, int] = {}
        self.uses: dict[int, list[Use]] = {}
        self.count = 0
        self.wrong = 0

    def run(self, params: Any) -> None:
        number = c_uint64.from_address(params[0]).value
        for use in self.uses.pop(number):
            words = (ctypes.c_uint32 * (use.tensor.bytes // 4)).from_address(use.tensor.address)
            pages = np.ctypeslib.as_array(words)[:: PAGE // 4]
            self.wrong += bool(use.expected and (pages != use.expected).any())
            if use.writes:
                pages[:] = number

    def __call__(self, *named: Tensor, out: tuple[Tensor, ...]) -> None:
        self.count += 1
        everything = list({id(tensor): tensor for tensor in (*named, *out)}.values())
        if len(everything) not in self.kernels:
            name = f"training{len(everything)}"
            self.kernels[len(everything)] = cuda.register(name, self.run, 8, 8 * len(everything))
        self.uses[self.count] = [
            Use(t, t.written if any(t is n for n in named) else 0, any(t is o for o in out))
            for t in everything
        ]
        for tensor in out:
            tensor.written = self.count
        table = (c_uint64 * len(everything))(*(tensor.address for tensor in everything))
        cuda.launch(self.kernels[len(everything)], c_uint64(self.count), table)

    def in_lists(self, *named: list[Tensor], out: tuple[list[Tensor], ...]) -> None:
        """One operation on corresponding tensors of lists, in as many launches as PyTorch makes of it."""
        lists = [*named, *(o for o in out if not any(o is n for n in named))]
        begin = bytes = 0
        for i in range(len(lists[0])):
            bytes += lists[0][i].bytes
            if i + 1 - begin == LISTED[len(lists)] or bytes >= WORK or i + 1 == len(lists[0]):
                some = slice(begin, i + 1)
                self(*(t for n in named for t in n[some]), out=tuple(t for o in out for t in o[some]))
                begin, bytes = i + 1, 0


class Training:
    def __init__(self, layers: int, most: int) -> None:
        self.allocator = Allocator(most)
        self.launch = Launches()
        embedding = [8000 * KIB]
        layer = [512 * KIB, 128 * KIB, 128 * KIB, 512 * KIB, 2 * MIB, 2 * MIB, 2 * MIB]
        self.layers = layers
        self.weights = [self.made(bytes) for bytes in [*embedding, *layers * layer, *embedding]]
        self.states: tuple[list[Tensor], ...] = ()

    def made(self, bytes: int, *of: Tensor) -> Tensor:
        """Filled by a kernel."""
        tensor = self.allocator.take(bytes)
        self.launch(*of, out=(tensor,))
        return tensor

    def forward(self) -> tuple[list[list[Tensor]], Tensor]:
        hidden = self.made(512 * KIB, self.weights[0])
        kept = [[hidden]]
        for number in range(self.layers):
            q, k, v, o, gate, up, down = self.weights[1 + 7 * number :][:7]
            queries, keys, values = (
                self.made(b, hidden, w) for b, w in ((512 * KIB, q), (128 * KIB, k), (128 * KIB, v))
            )
            scores = self.made(2 * MIB, queries, keys)
            shares = self.made(2 * MIB, scores)
            self.allocator.give(scores)
            mixed = self.made(512 * KIB, shares, values)
            added = self.made(512 * KIB, mixed, o)
            gated, raised = self.made(2 * MIB, added, gate), self.made(2 * MIB, added, up)
            active = self.made(2 * MIB, gated)
            product = self.made(2 * MIB, active, raised)
            hidden = self.made(512 * KIB, product, down)
            kept.append([queries, keys, values, shares, mixed, added, gated, raised, active, product, hidden])
        return kept, self.made(8000 * KIB, hidden, self.weights[-1])

    def backward(self, kept: list[list[Tensor]], logits: Tensor) -> list[Tensor]:
        gradients: list[Tensor] = []
        shares = self.made(8000 * KIB, logits)
        lost = self.made(8000 * KIB, shares)
        self.allocator.give(logits, shares)
        flowing = self.made(512 * KIB, lost, self.weights[-1])
        gradients.append(self.made(8000 * KIB, lost, kept[-1][-1]))
        self.allocator.give(lost)
        for number in reversed(range(self.layers)):
            weights = self.weights[1 + 7 * number :][:7]
            saved, before = kept[number + 1], kept[number][-1]
            for weight in reversed(weights):
                inner = self.made(saved[-2].bytes, flowing, weight)
                gradients.append(self.made(weight.bytes, inner, saved[-2]))
                self.allocator.give(flowing)
                flowing = self.made(512 * KIB, inner, before)
                self.allocator.give(inner)
            self.allocator.give(*saved)
        gradients.append(self.made(8000 * KIB, flowing, kept[0][0]))
        self.allocator.give(flowing, *kept[0])
        return gradients[::-1]

    def adamw(self, gradients: list[Tensor]) -> None:
        if not self.states:
            self.states = tuple([self.made(w.bytes) for w in self.weights] for _ in range(2))
        means, squares = self.states
        self.launch.in_lists(self.weights, out=(self.weights,))
        self.launch.in_lists(means, gradients, out=(means,))
        self.launch.in_lists(squares, out=(squares,))
        self.launch.in_lists(squares, gradients, out=(squares,))
        roots = [self.allocator.take(s.bytes) for s in squares]
        self.launch.in_lists(squares, out=(roots,))
        self.launch.in_lists(roots, out=(roots,))
        self.launch.in_lists(self.weights, means, roots, out=(self.weights,))
        self.allocator.give(*roots)

    def step(self) -> None:
        kept, logits = self.forward()
        gradients = self.backward(kept, logits)
        self.adamw(gradients)
        self.allocator.give(*gradients)


if __name__ == "__main__":
    layers, steps = map(int, sys.argv[1:])
    training = Training(layers, 1024 * MIB)
    for _ in range(steps):
        training.step()
        cuda("cuCtxSynchronize")
    print("right" if not training.launch.wrong else f"{training.launch.wrong} were wrong")

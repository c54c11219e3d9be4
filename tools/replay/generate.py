# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces made by rule, for where none was recorded: what such models launch, in order.

Times are by arithmetic. A kernel takes the larger of its bytes over the memory's speed and its operations
over the GPU's, and a few microseconds; both are rounded down from what an H100 does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["GENERATORS", "generate"]

MEMORY = 2.6e12
"""Bytes a second."""
OPERATIONS = 550e12
"""bf16 operations a second."""
LEAST = 3e-6
"""Seconds of the smallest kernel."""
PIECE = 64 << 20
"""Bytes of a copy that loads weights."""

Object = tuple[int, int, int, str]
Line = dict[str, Any]


class _Program:
    """What a program does, as lines of a trace."""

    def __init__(self) -> None:
        self.lines: list[Line] = [{"greenboost_trace": 1, "program": "generated"}]
        self.allocations = 0
        self.sizes: dict[int, int] = {}
        self.functions: dict[str, int] = {}

    def alloc(self, size: float) -> int:
        number, size = self.allocations, int(size)
        self.allocations += 1
        self.sizes[number] = size
        self.lines.append({"op": "alloc", "a": number, "bytes": size})
        return number

    def free(self, number: int) -> None:
        self.lines.append({"op": "free", "a": number})

    def load(self, size: float) -> int:
        """An allocation filled from the host."""
        number = self.alloc(size)
        for at in range(0, self.sizes[number], PIECE):
            end = min(at + PIECE, self.sizes[number])
            self.lines.append({"op": "copy", "o": [[number, at, end, "w"]]})
        return number

    def passes(self, name: str) -> None:
        self.lines.append({"op": "pass", "name": name})

    def all(self, number: int, mode: str = "r") -> Object:
        return (number, 0, self.sizes[number], mode)

    def part(self, number: int, size: float, mode: str = "r") -> Object:
        return (number, 0, max(min(int(size), self.sizes[number]), 1), mode)

    def launch(self, name: str, *objects: Object, operations: float = 0) -> None:
        moved = sum(end - begin for _, begin, end, _ in objects)
        seconds = LEAST + max(moved / MEMORY, operations / OPERATIONS)
        function = self.functions.setdefault(name, len(self.functions))
        line = {"op": "launch", "f": function, "gpu": round(1e6 * seconds, 1)}
        self.lines.append({**line, "o": [list(o) for o in objects]})


class _Transformer:
    """Llama's architecture, bf16: weights loaded layer by layer, buffers that all layers share."""

    def __init__(
        self, p: _Program, hidden: int, wide: int, layers: int, kv: float, *, tokens: int, context: int
    ) -> None:
        self.p, self.hidden, self.wide = p, hidden, wide
        self.kv_width = int(hidden * kv)
        self.embedding = p.load(2 * 32000 * hidden)
        self.layers = [
            {
                "qkv": p.load(2 * hidden * (hidden + 2 * self.kv_width)),
                "out": p.load(2 * hidden * hidden),
                "up": p.load(2 * hidden * 2 * wide),
                "down": p.load(2 * hidden * wide),
                "cache": p.alloc(2 * 2 * context * self.kv_width),
            }
            for _ in range(layers)
        ]
        self.head = p.load(2 * 32000 * hidden)
        self.x = p.alloc(2 * tokens * hidden)
        self.y = p.alloc(2 * tokens * (hidden + 2 * self.kv_width))
        self.z = p.alloc(2 * tokens * 2 * wide)

    def product(self, weights: int, tokens: int, source: Object, target: Object) -> None:
        p = self.p
        p.launch(
            "product" if tokens > 1 else "vector product",
            p.all(weights),
            source,
            target,
            operations=p.sizes[weights] * tokens,
        )

    def attend(self, layer: dict[str, int], tokens: int, context: int) -> None:
        p, h = self.p, self.hidden
        x, y = p.part(self.x, 2 * tokens * h, "m"), p.part(self.y, 2 * tokens * h, "m")
        p.launch("norm", x, y)
        self.product(layer["qkv"], tokens, x, y)
        begin = 4 * (context - tokens) * self.kv_width
        end = 4 * context * self.kv_width
        p.launch("store", (layer["cache"], begin, end, "m"), y)
        p.launch("attend", (layer["cache"], 0, end, "r"), y, operations=4 * tokens * context * h / 2)
        self.product(layer["out"], tokens, y, x)

    def feed(self, layer: dict[str, int], tokens: int) -> None:
        p, h = self.p, self.hidden
        x, y = p.part(self.x, 2 * tokens * h, "m"), p.part(self.y, 2 * tokens * h, "m")
        z = p.part(self.z, 4 * tokens * self.wide, "m")
        p.launch("norm", x, y)
        self.product(layer["up"], tokens, y, z)
        p.launch("gate", z)
        self.product(layer["down"], tokens, z, x)

    def forward(self, tokens: int, context: int) -> None:
        p = self.p
        x = p.part(self.x, 2 * tokens * self.hidden, "m")
        p.launch("embed", p.all(self.embedding), x)
        for layer in self.layers:
            self.attend(layer, tokens, context)
            self.feed(layer, tokens)
        p.launch("norm", x)
        self.product(self.head, 1, x, x)


def _requests(p: _Program, model: _Transformer, prompts: list[int], steps: int) -> None:
    for number, tokens in enumerate(prompts):
        p.passes(f"prefill {number}")
        model.forward(tokens, tokens)
        for step in range(steps):
            p.passes(f"decode {number}.{step}")
            model.forward(1, tokens + step + 1)


def decode(p: _Program) -> None:
    """The 28.4 GB Llama of the comparison: prompts of 16 tokens, then 12 tokens each."""
    _requests(p, _Transformer(p, 8192, 28672, 16, 1 / 8, tokens=2048, context=2200), [16, 16], 12)


def prefill(p: _Program) -> None:
    """The same: prompts of 2048 tokens only."""
    _requests(p, _Transformer(p, 8192, 28672, 16, 1 / 8, tokens=2048, context=2200), [2048] * 6, 0)


def mixed(p: _Program) -> None:
    """The same: from prefill to decode and back to another request."""
    _requests(p, _Transformer(p, 8192, 28672, 16, 1 / 8, tokens=2048, context=2200), [2048, 1024, 2048], 6)


def chat(p: _Program) -> None:
    """13 GB of weights, a cache that grows from 1500 to 6000 tokens and to 3 GB, not reserved at once."""
    model = _Transformer(p, 4096, 11008, 32, 1, tokens=1500, context=6400)
    context = 0
    for turn in range(4):
        context += 1500
        p.passes(f"prefill {turn}")
        model.forward(1500, context)
        for step in range(10):
            context += 1
            p.passes(f"decode {turn}.{step}")
            model.forward(1, context)


def mixture(p: _Program, *, together: bool) -> None:
    chooser = random.Random(0)
    hidden, wide, layers, experts = 4096, 14336, 12, 8
    model = _Transformer(p, hidden, 64, layers, 1 / 4, tokens=256, context=600)
    ups = [[p.load(2 * hidden * 2 * wide) for _ in range(experts)] for _ in range(layers)]
    downs = [[p.load(2 * hidden * wide) for _ in range(experts)] for _ in range(layers)]
    z = p.alloc(2 * 256 * 2 * wide)

    def forward(tokens: int, context: int) -> None:
        x = p.part(model.x, 2 * tokens * hidden, "m")
        p.launch("embed", p.all(model.embedding), x)
        for number, layer in enumerate(model.layers):
            model.attend(layer, tokens, context)
            chosen = range(experts) if tokens > 8 else sorted(chooser.sample(range(experts), 2))
            for expert in range(experts) if together else chosen:
                share = max(tokens // 4, 1)
                model.product(ups[number][expert], share, x, p.part(z, 4 * share * wide, "m"))
                model.product(downs[number][expert], share, p.part(z, 4 * share * wide, "m"), x)
        model.product(model.head, 1, x, x)

    for request in range(2):
        p.passes(f"prefill {request}")
        forward(256, 256)
        for step in range(16):
            p.passes(f"decode {request}.{step}")
            forward(1, 257 + step)


def moe(p: _Program) -> None:
    """A mixture of 8 experts, 12 layers, 35 GB, of which each layer names all."""
    mixture(p, together=True)


def routed(p: _Program) -> None:
    """The same, of which a token names two at random."""
    mixture(p, together=False)


def train(p: _Program) -> None:
    """1.9 billion parameters in bf16, their gradients and AdamW's two moments, 4 x 2048 tokens."""
    hidden, wide, layers, tokens = 2560, 6912, 24, 8192
    sizes = {
        "qkv": 3 * hidden * hidden,
        "out": hidden * hidden,
        "up": 2 * hidden * wide,
        "down": hidden * wide,
    }
    saved = {"qkv": hidden, "out": 3 * hidden, "up": hidden, "down": wide}  # what each keeps, a token
    names = [(layer, name) for layer in range(layers) for name in sizes]
    weight = {key: p.load(2 * sizes[key[1]]) for key in names}
    x = p.alloc(2 * tokens * hidden)
    z = p.alloc(2 * tokens * 2 * wide)
    moments: dict[tuple[int, str], tuple[int, int]] = {}
    gradient: dict[tuple[int, str], int] = {}
    for step in range(5):
        p.passes(f"step {step}")
        kept: dict[tuple[int, str], int] = {}
        for key in names:
            kept[key] = p.alloc(2 * tokens * saved[key[1]])
            operations = 2 * sizes[key[1]] * tokens
            target = z if key[1] == "up" else x
            p.launch(
                "forward",
                p.all(weight[key]),
                p.all(kept[key], "m"),
                p.all(target, "m"),
                operations=operations,
            )
        for key in reversed(names):
            operations = 2 * sizes[key[1]] * tokens
            source = z if key[1] == "up" else x
            p.launch("to input", p.all(weight[key]), p.all(source, "m"), operations=operations)
            gradient[key] = p.alloc(2 * sizes[key[1]])
            p.launch(
                "to weights",
                p.all(kept[key]),
                p.all(source),
                p.all(gradient[key], "m"),
                operations=operations,
            )
            p.free(kept[key])
        for key in names:
            if key not in moments:
                moments[key] = p.alloc(2 * sizes[key[1]]), p.alloc(2 * sizes[key[1]])
            p.launch(
                "adam",
                p.all(weight[key], "m"),
                p.all(gradient[key]),
                *(p.all(moment, "m") for moment in moments[key]),
            )
            p.free(gradient[key])


GENERATORS: dict[str, Callable[[_Program], None]] = {
    function.__name__: function for function in (decode, prefill, mixed, chat, moe, routed, train)
}


def generate(name: str) -> Iterator[Line]:
    """The lines of a trace made by rule."""
    program = _Program()
    GENERATORS[name](program)
    yield from program.lines

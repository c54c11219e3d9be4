# SPDX-License-Identifier: GPL-2.0-or-later
"""Which model greenboost bench gpu builds, and what memory each mode gets: arithmetic, no I/O.

The model is a Llama in bf16. It is as large as the card holds whole, since the run that all others are
compared with has it in VRAM alone; and no larger than what RAM can take of it in the other modes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..model import format_size
from .errors import CommandError, UsageError

__all__ = ["MODES", "QUICK", "Limits", "Shape", "choose_limits", "choose_shape"]

MODES: Mapping[str, str] = {
    "vram": "everything in VRAM, without GreenBoost: the reference",
    "shim": "greenboost run with VRAM to spare: what it costs when nothing moves",
    "paged": "greenboost run, the overflow in RAM",
    "paged+nvme": "greenboost run, the overflow in RAM and on --spill",
    "mapped": "greenboost run --paging mapped, the overflow read in place",
    "accelerate": "accelerate's offload to RAM",
    "accelerate+disk": "accelerate's offload to RAM and disk",
    "flextensor": "FlexTensor",
}
"""The modes in the order in which they run, and what each is."""

_BYTES = 2
"""Of a bf16."""
_MIB, _GIB = 1 << 20, 1 << 30
_CONTEXT = 3 * _GIB // 2
"""VRAM that CUDA, cuBLAS and fragmentation of PyTorch's pool take besides, generously."""
_PROCESS_RAM = 6 * _GIB
"""RAM that Python, CUDA's libraries and the daemon take besides."""
_VRAM_USED = 0.95
"""Share of the free VRAM that the reference may fill."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama: what LlamaConfig is to be given."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int = 32000

    @property
    def layer_bytes(self) -> int:
        """Of one layer's weights."""
        kv = self.hidden * self.kv_heads // self.heads
        attention = 2 * self.hidden * (self.hidden + kv)
        return _BYTES * (attention + 3 * self.hidden * self.intermediate + 2 * self.hidden)

    @property
    def weights_bytes(self) -> int:
        """Of all weights: the layers, the embedding, the head and the last norm."""
        return self.layers * self.layer_bytes + _BYTES * self.hidden * (2 * self.vocabulary + 1)

    @property
    def pass_bytes(self) -> int:
        """What a pass cannot do without: all weights but the embedding, of which it reads a few rows."""
        return self.weights_bytes - _BYTES * self.hidden * self.vocabulary

    def overflow(self, vram: int) -> int:
        """Bytes of a pass for which `vram` has no room."""
        return max(self.pass_bytes - vram, 0)

    def working_bytes(self, prompt: int, tokens: int) -> int:
        """What a prefill of `prompt` tokens and decoding take besides the weights, about.

        The cache, which is copied as it grows; the widest activations, three at once; the logits of
        every token, also in float.
        """
        kv = self.hidden * self.kv_heads // self.heads
        cache = 2 * _BYTES * self.layers * kv * (prompt + tokens)
        return 2 * cache + _BYTES * prompt * (3 * self.intermediate + 4 * self.hidden + 3 * self.vocabulary)


_SHAPES = (
    Shape(16, 8192, 28672, 64, 8),
    Shape(32, 4096, 14336, 32, 8),
    Shape(32, 2048, 8192, 32, 8),
    Shape(24, 1024, 4096, 16, 4),
)
"""Largest first, with the most layers of each: the first is the model of the published comparisons."""
_FEWEST = 8
"""Layers: of fewer, a chunk is too large a share for the figures to mean much."""

QUICK = Shape(12, 2048, 8192, 32, 8)
"""For --quick: 1.7 GB."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes that the modes may use. The RAM is what holds chunks or weights, not the process's."""

    vram: int  #: for all modes but vram and shim
    ram: int  #: where all that VRAM does not hold goes to RAM: the model has room there
    ram_nvme: int  #: where a part of it goes on to NVMe or disk
    spill: int  #: room needed on NVMe or disk then

    def cap(self) -> int:
        """What the whole process tree may have of RAM, page cache included, in modes with NVMe or disk."""
        return self.ram_nvme + _PROCESS_RAM


def choose_shape(
    *,
    free_vram: int,
    available_ram: int,
    prompt: int,
    tokens: int,
    layers: int | None = None,
    hidden: int | None = None,
    quick: bool = False,
) -> Shape:
    """The largest model that fits, or the one asked for.

    `free_vram` has to hold it all, `available_ram` all of it but the least VRAM that a mode may be given.
    Raises UsageError if what was asked for does not fit, CommandError if nothing does.
    """
    shapes: tuple[Shape, ...] = (QUICK,) if quick else _SHAPES
    if hidden is not None:
        shapes = tuple(shape for shape in (*_SHAPES, QUICK) if shape.hidden == hidden)[:1]
        if not shapes:
            known = ", ".join(str(shape.hidden) for shape in _SHAPES)
            raise UsageError(f"--hidden: {hidden} is none of {known}")

    def needs(shape: Shape) -> tuple[int, int]:
        working = shape.working_bytes(prompt, tokens)
        # All of it in RAM is the most that any mode asks for: its own copy, and what is under way.
        return shape.weights_bytes + working + _CONTEXT, shape.weights_bytes + working + _PROCESS_RAM

    vram = int(free_vram * _VRAM_USED)
    for most in shapes:
        counts = range(most.layers, (1 if hidden or quick else _FEWEST) - 1, -1) if not layers else (layers,)
        for count in counts:
            shape = replace(most, layers=count)
            needed = needs(shape)
            if needed[0] <= vram and needed[1] <= available_ram:
                return shape
    smallest = replace(shapes[-1], layers=layers or _FEWEST)
    needed = needs(smallest)
    what = f"a model of {smallest.layers} layers of {smallest.hidden} with a prompt of {prompt} tokens"
    message = (
        f"{what} needs {format_size(needed[0])} of VRAM and {format_size(needed[1])} of RAM, "
        f"{format_size(vram)} and {format_size(available_ram)} are free; "
    )
    if layers or hidden:
        raise UsageError(message + "give a smaller --layers, --hidden or --prompt")
    raise CommandError(message + "end what else uses them, or give a smaller --prompt")


def choose_limits(
    shape: Shape, *, prompt: int, tokens: int, chunk: int, vram: int | None, ram: int | None
) -> Limits:
    """What the modes get: of VRAM 40% of the weights, of RAM with NVMe half of the rest, or as asked.

    Raises UsageError when what was asked for leaves nothing to compare.
    """
    weights = shape.weights_bytes
    if vram is None:
        vram = weights * 2 // 5
    if vram >= weights:
        raise UsageError(
            f"--vram: {format_size(vram)} holds the whole model of {format_size(weights)}; give less"
        )
    if vram < 8 * chunk:
        raise UsageError(f"--vram: {format_size(vram)} is less than 8 chunks of {format_size(chunk)}")
    overflow = weights - vram
    # What the passes need besides the weights may be pushed out as well; a sixteenth for what PyTorch's
    # pool rounds up, and the chunks that change places.
    besides = shape.working_bytes(prompt, tokens) + weights // 16 + 16 * chunk
    if ram is None:
        ram = overflow // 2
    if ram >= overflow:
        raise UsageError(
            f"--ram: {format_size(ram)} holds all that is not in VRAM, {format_size(overflow)}; give less"
        )
    if ram < 8 * chunk:
        raise UsageError(f"--ram: {format_size(ram)} is less than 8 chunks of {format_size(chunk)}")
    return Limits(
        vram=vram,
        # Enough for copies of what is in VRAM: without, chunks that did not change are written again.
        ram=_chunks(weights + besides, chunk),
        ram_nvme=_chunks(ram, chunk),
        spill=_chunks(overflow - ram + besides + _MIB, chunk),
    )


def _chunks(size: int, chunk: int) -> int:
    """`size` in whole chunks, upwards."""
    return -(-size // chunk) * chunk

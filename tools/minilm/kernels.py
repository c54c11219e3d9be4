# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernels of the model, in numpy, as functions of device addresses.

A kernel sees no array but those it makes from the addresses it was given, as on a GPU. Matrices are
row-major fp32; linear layers keep PyTorch's layout, weight[out, in]. Sequences of a batch are padded
to one length, and `lengths` says how much of each is real.
"""

from __future__ import annotations

import ctypes
import math

import numpy as np
import numpy.typing as npt

from minilm.registry import F32, U32, Address, Registry

__all__ = ["MODULE"]

Floats = npt.NDArray[np.float32]

MODULE = Registry()


def floats(address: int, *shape: int) -> Floats:
    """Device memory as an fp32 array."""
    return np.ctypeslib.as_array((ctypes.c_float * math.prod(shape)).from_address(address)).reshape(shape)


def integers(address: int, *shape: int) -> npt.NDArray[np.uint32]:
    """Device memory as an array of u32."""
    return np.ctypeslib.as_array((ctypes.c_uint32 * math.prod(shape)).from_address(address)).reshape(shape)


@MODULE.kernel
def embed(
    out: Address,
    ids: Address,
    words: Address,
    positions: Address,
    types: Address,
    batch: U32,
    length: U32,
    vocabulary: U32,
    hidden: U32,
) -> None:
    """out[batch * length, hidden] = word + position + type embedding; every token is of type 0."""
    rows = floats(words, vocabulary, hidden)[integers(ids, batch, length)]
    rows += floats(positions, length, hidden)
    rows += floats(types, hidden)
    floats(out, batch, length, hidden)[:] = rows


@MODULE.kernel
def linear(
    out: Address,
    x: Address,
    weight: Address,
    bias: Address,
    rows: U32,
    inputs: U32,
    outputs: U32,
) -> None:
    """out[rows, outputs] = x @ weight.T + bias"""
    y = floats(out, rows, outputs)
    np.matmul(floats(x, rows, inputs), floats(weight, outputs, inputs).T, out=y)
    y += floats(bias, outputs)


@MODULE.kernel
def gelu(x: Address, count: U32) -> None:
    """x * Phi(x), in place, with Phi by Abramowitz and Stegun 7.1.26 (absolute error below 1.5e-7)."""
    y = floats(x, count)
    z = np.abs(y) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    tail = np.zeros_like(t)
    for coefficient in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail = (tail + np.float32(coefficient)) * t
    erf = np.copysign(1 - tail * np.exp(-z * z), y)
    y *= np.float32(0.5) * (1 + erf)


@MODULE.kernel
def attention(
    out: Address,
    query: Address,
    key: Address,
    value: Address,
    lengths: Address,
    batch: U32,
    length: U32,
    heads: U32,
    width: U32,
) -> None:
    """Softmax attention within each sequence; all matrices are [batch * length, heads * width]."""

    def split(address: int) -> Floats:
        return floats(address, batch, length, heads, width).transpose(0, 2, 1, 3)

    scores = split(query) @ split(key).transpose(0, 1, 3, 2)
    scores *= np.float32(1 / math.sqrt(width))
    padding = np.arange(length) >= integers(lengths, batch)[:, None]
    scores[np.broadcast_to(padding[:, None, None, :], scores.shape)] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    split(out)[:] = scores @ split(value)


@MODULE.kernel
def add(x: Address, y: Address, count: U32) -> None:
    """x += y"""
    floats(x, count)[:] += floats(y, count)


@MODULE.kernel
def layer_norm(x: Address, weight: Address, bias: Address, rows: U32, hidden: U32, epsilon: F32) -> None:
    """Each row of x[rows, hidden] to mean 0 and variance 1, then scaled and shifted, in place."""
    y = floats(x, rows, hidden)
    y -= y.mean(axis=-1, keepdims=True)
    y /= np.sqrt((y * y).mean(axis=-1, keepdims=True) + np.float32(epsilon))
    y *= floats(weight, hidden)
    y += floats(bias, hidden)


@MODULE.kernel
def mean_pool(out: Address, x: Address, lengths: Address, batch: U32, length: U32, hidden: U32) -> None:
    """out[batch, hidden] = the mean over each sequence's real tokens, scaled to length 1."""
    counts = integers(lengths, batch)
    real = (np.arange(length) < counts[:, None]).astype(np.float32)[:, :, None]
    means = (floats(x, batch, length, hidden) * real).sum(axis=1) / counts[:, None].astype(np.float32)
    floats(out, batch, hidden)[:] = means / np.linalg.norm(means, axis=-1, keepdims=True)


@MODULE.kernel
def ramp(out: Address, count: U32, first: U32, step: U32) -> None:
    """out[i] = first + i * step, modulo 2**32; written in pieces that stay in the CPU's cache."""
    y = integers(out, count)
    for start in range(0, count, 1 << 16):
        piece = np.arange(start, min(start + (1 << 16), count), dtype=np.uint32)
        y[start : start + len(piece)] = piece * np.uint32(step) + np.uint32(first)

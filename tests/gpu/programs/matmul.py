# SPDX-License-Identifier: GPL-2.0-or-later
"""A chain of PyTorch matrix products over many operands; knows nothing of GreenBoost.

    matmul.py OUT.npz [COUNT] [SIZE]

Holds COUNT matrices of SIZE x SIZE float32 on the GPU and goes over them twice.
"""

import sys

import numpy as np
import torch

out, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
torch.use_deterministic_algorithms(True)
weights = [(torch.randn(size, size) / size**0.5).cuda() for _ in range(count)]
x = torch.randn(size, size).cuda()
for _ in range(2):
    for w in weights:
        x = torch.tanh(x @ w)
np.savez(out, x.cpu().numpy())

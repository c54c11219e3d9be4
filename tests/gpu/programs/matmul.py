# SPDX-License-Identifier: GPL-2.0-or-later
"""A chain of PyTorch matrix products over many operands; knows nothing of GreenBoost.

    matmul.py OUT.pt [COUNT] [SIZE]

Holds COUNT matrices of SIZE x SIZE float32 on the GPU and goes over them twice.
"""

import sys

import torch

out, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
torch.use_deterministic_algorithms(True)
weights = [(torch.randn(size, size) / size**0.5).cuda() for _ in range(count)]
x = torch.randn(size, size).cuda()
for _ in range(2):
    for w in weights:
        x = torch.tanh(x @ w)
torch.cuda.synchronize()
free, total = torch.cuda.mem_get_info()
print(f"allocated {torch.cuda.memory_allocated()} total {total} free {free}", flush=True)
torch.save(x.cpu(), out)

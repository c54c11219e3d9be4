# SPDX-License-Identifier: GPL-2.0-or-later
"""Triton: kernels by pointer and by tensor descriptor (a tensor map, made on the host), over many tensors.

    with_triton.py OUT.npz

Knows nothing of GreenBoost.
"""

import sys

import numpy as np
import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def scale(x, n, factor, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at, mask=at < n) * factor, mask=at < n)


@triton.jit
def product(a, b, c, K, BLOCK: tl.constexpr):
    row, column = tl.program_id(0) * BLOCK, tl.program_id(1) * BLOCK
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in range(0, K, BLOCK):
        total = tl.dot(a.load([row, k]), b.load([k, column]), total)
    c.store([row, column], total.to(tl.bfloat16))


SIZE, BLOCK = 2048, 64
torch.manual_seed(0)
weights = [(torch.randn(SIZE, SIZE) / SIZE**0.5).to(torch.bfloat16).cuda() for _ in range(40)]
x = torch.randn(SIZE, SIZE).to(torch.bfloat16).cuda()
for _ in range(3):
    for weight in weights:
        scale[(triton.cdiv(weight.numel(), 1024),)](weight, weight.numel(), 1.01, BLOCK=1024)
        y = torch.empty_like(x)
        descriptors = [TensorDescriptor.from_tensor(tensor, [BLOCK, BLOCK]) for tensor in (x, weight, y)]
        product[(SIZE // BLOCK, SIZE // BLOCK)](*descriptors, SIZE, BLOCK=BLOCK)
        x = y
np.savez(sys.argv[1], x.float().cpu().numpy(), *(weight.float().cpu().numpy() for weight in weights))

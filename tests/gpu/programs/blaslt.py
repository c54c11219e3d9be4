# SPDX-License-Identifier: GPL-2.0-or-later
"""cuBLASLt: products with an epilogue and of 8-bit floats, whose kernels use tensor maps on such GPUs.

    blaslt.py OUT.npz

Knows nothing of GreenBoost.
"""

import sys

import numpy as np
import torch

torch.manual_seed(0)
torch.backends.cuda.preferred_blas_library("cublaslt")
SIZE, COUNT = 4096, 20
weights = [(torch.randn(SIZE, SIZE) / SIZE**0.5).to(torch.bfloat16).cuda() for _ in range(COUNT)]
biases = [torch.randn(SIZE).to(torch.bfloat16).cuda() for _ in range(COUNT)]
results = []
x = torch.randn(512, SIZE).to(torch.bfloat16).cuda()
for _ in range(3):
    for weight, bias in zip(weights, biases, strict=True):
        x = torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
        x = x / x.abs().max()
    results.append(x.float().cpu().numpy())
if torch.cuda.get_device_capability() >= (8, 9):
    one = torch.ones((), device="cuda")
    low = x.to(torch.float8_e4m3fn)
    for weight in weights:
        product = torch._scaled_mm(
            low, weight.to(torch.float8_e4m3fn).t(), one, one, out_dtype=torch.bfloat16
        )
        low = (product / product.abs().max()).to(torch.float8_e4m3fn)
    results.append(product.float().cpu().numpy())
np.savez(sys.argv[1], *results)

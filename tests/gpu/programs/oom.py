# SPDX-License-Identifier: GPL-2.0-or-later
"""Allocates until PyTorch says that there is no more, lets go of it, and computes with what it kept.

    oom.py OUT.npz

Knows nothing of GreenBoost.
"""

import sys

import numpy as np
import torch

torch.manual_seed(0)
kept = [torch.randn(2048, 2048).cuda() for _ in range(8)]
more = []
message = ""
while not message and len(more) < 100_000:
    try:
        more.append(torch.full((64 << 18,), len(more), device="cuda"))
    except torch.OutOfMemoryError as error:
        message = str(error)
values = [int(tensor[-1]) for tensor in more]
assert message
assert values == list(range(len(more))), values
print(len(more) * 64, "MiB, then:", message)
more.clear()
torch.cuda.empty_cache()
product = kept[0]
for tensor in kept[1:]:
    product = torch.tanh(product @ tensor / 45)
np.savez(sys.argv[1], product.cpu().numpy())

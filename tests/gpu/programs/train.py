# SPDX-License-Identifier: GPL-2.0-or-later
"""A few training steps of a small Llama of transformers: forward, backward, AdamW.

    train.py OUT.npz

Knows nothing of GreenBoost.
"""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
torch.use_deterministic_algorithms(True)
config = LlamaConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=10,
    num_attention_heads=16,
    num_key_value_heads=4,
    vocab_size=16000,
    attn_implementation="eager",
)
model = LlamaForCausalLM(config).cuda().train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
losses = []
for _ in range(4):
    tokens = torch.randint(0, 16000, (4, 256)).cuda()
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
weights = {name: value.detach().cpu().numpy() for name, value in model.named_parameters()}
np.savez(sys.argv[1], losses=np.array(losses), **weights)

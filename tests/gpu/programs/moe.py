# SPDX-License-Identifier: GPL-2.0-or-later
"""A small mixture of experts (Mixtral of transformers, random weights) that generates.

    moe.py OUT.npz

Knows nothing of GreenBoost.
"""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from transformers import MixtralConfig, MixtralForCausalLM

torch.manual_seed(0)
config = MixtralConfig(
    hidden_size=1024,
    intermediate_size=2048,
    num_hidden_layers=8,
    num_attention_heads=16,
    num_key_value_heads=4,
    num_local_experts=8,
    num_experts_per_tok=2,
    vocab_size=16000,
    max_position_embeddings=1024,
)
model = MixtralForCausalLM(config).to(torch.bfloat16).eval().cuda()
tokens = torch.randint(0, 16000, (2, 64)).cuda()
with torch.no_grad():
    logits = model(tokens).logits.float().cpu().numpy()
    generated = model.generate(tokens, max_new_tokens=16, do_sample=False, pad_token_id=0).cpu().numpy()
np.savez(sys.argv[1], logits=logits, generated=generated)

# SPDX-License-Identifier: GPL-2.0-or-later
"""A small Llama of transformers, its layers on two GPUs by accelerate: a forward pass and greedy decoding.

    two_gpus.py OUT.npz

Knows nothing of GreenBoost.
"""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from accelerate import dispatch_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
layers = 12
config = LlamaConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=layers,
    num_attention_heads=16,
    num_key_value_heads=4,
    vocab_size=32000,
    max_position_embeddings=1024,
)
places = {f"model.layers.{layer}": layer * 2 // layers for layer in range(layers)}
places |= {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 1, "lm_head": 1}
model = dispatch_model(LlamaForCausalLM(config).to(torch.bfloat16).eval(), device_map=places)
tokens = torch.randint(0, 32000, (2, 128)).cuda()
with torch.no_grad():
    logits = [model(tokens).logits.float().cpu().numpy() for _ in range(2)]
    generated = model.generate(tokens, max_new_tokens=16, do_sample=False, pad_token_id=0).cpu().numpy()
# There and back, also of rows that do not lie side by side.
square = torch.rand(4096, 8192, device=0)
there = square[:, :4096].to(1, non_blocking=True)
back = torch.empty_like(square)
back[:, 4096:].copy_(there)
back[:, :4096].copy_(square.to(1)[:, 4096:])
np.savez(sys.argv[1], *logits, generated=generated, there=there.cpu().numpy(), back=back.cpu().numpy())

# SPDX-License-Identifier: GPL-2.0-or-later
"""A small Llama of transformers with random weights: a forward pass and greedy decoding, a line a token.

    llama.py OUT.npz

Knows nothing of GreenBoost.
"""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM


class Lines:
    """A streamer."""

    def put(self, tokens: torch.Tensor) -> None:
        print("tokens", tuple(tokens.shape), flush=True)

    def end(self) -> None:
        pass


torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=12,
    num_attention_heads=16,
    num_key_value_heads=4,
    vocab_size=32000,
    max_position_embeddings=1024,
)
model = LlamaForCausalLM(config).to(torch.bfloat16).eval().cuda()
tokens = torch.randint(0, 32000, (2, 128)).cuda()
with torch.no_grad():
    logits = [model(tokens).logits.float().cpu().numpy() for _ in range(2)]
    streamed = model.generate(
        tokens[:1], max_new_tokens=24, do_sample=False, pad_token_id=0, streamer=Lines()
    )
    generated = model.generate(tokens, max_new_tokens=16, do_sample=False, pad_token_id=0).cpu().numpy()
np.savez(sys.argv[1], *logits, generated=generated, streamed=streamed.cpu().numpy())

# SPDX-License-Identifier: GPL-2.0-or-later
"""Record PyTorch models with random weights on a GPU, for tools/replay.

    python tools/replay/record_models.py OUTDIR [NAME...]

Each model runs in a process of its own under ``greenboost run --record`` with VRAM to spare; the trace
becomes OUTDIR/NAME.jsonl.xz: the Llama of the comparison, a mixture of experts, a training step, a chat of
batch 1 whose cache grows. Where a pass begins, and which
memory is only read meanwhile, the program itself says: the shim cannot know either.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--chunk", "2MiB", "--vram", "90%", "--ram", "1GiB"]
"""Smaller chunks than any that will be used: what is smaller than a chunk leaves no trace of its uses."""


class Notes:
    """What only the program knows, with the trace's clock, one JSON line each."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w")

    def _put(self, **line: Any) -> None:
        print(json.dumps({"ns": time.monotonic_ns(), **line}), file=self.file, flush=True)

    def passes(self, name: str) -> None:
        """From here on it is another pass."""
        self._put(op="pass", name=name)

    def read_only(self, tensors: Any) -> None:
        for tensor in tensors:
            self._put(op="readonly", address=tensor.data_ptr(), bytes=tensor.nbytes)

    def writable(self, tensors: Any) -> None:
        for tensor in tensors:
            self._put(op="writable", address=tensor.data_ptr(), bytes=tensor.nbytes)


def _weights(model: Any) -> list[Any]:
    return [*model.parameters(), *model.buffers()]


@contextmanager
def _built_on_gpu() -> Iterator[Any]:
    import torch

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        yield torch


def _decode(torch: Any, model: Any, notes: Notes, prompts: list[int], steps: int) -> None:
    """One request after another: prefill of so many tokens, then single ones."""
    with torch.no_grad():
        for number, length in enumerate(prompts):
            tokens = torch.randint(0, 32000, (1, length), device="cuda")
            notes.passes(f"prefill {number}")
            out = model(tokens, use_cache=True, logits_to_keep=1)
            torch.cuda.synchronize()
            for step in range(steps):
                notes.passes(f"decode {number}.{step}")
                tokens = out.logits[:, -1:].argmax(-1)
                out = model(tokens, past_key_values=out.past_key_values, use_cache=True)
                tokens.cpu()
            del out


def llama(notes: Notes) -> None:
    """The model of the comparison: 28.4 GB."""
    with _built_on_gpu() as torch:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            hidden_size=8192,
            intermediate_size=28672,
            num_hidden_layers=16,
            num_attention_heads=64,
            num_key_value_heads=8,
            vocab_size=32000,
            max_position_embeddings=8192,
        )
        model = LlamaForCausalLM(config).eval()
    notes.read_only(_weights(model))
    _decode(torch, model, notes, [2048, 2048], 10)


def _mixture(notes: Notes, *, apart: bool) -> None:
    with _built_on_gpu() as torch:
        from transformers import MixtralConfig, MixtralForCausalLM

        config = MixtralConfig(
            hidden_size=2048,
            intermediate_size=7168,
            num_hidden_layers=12,
            num_attention_heads=32,
            num_key_value_heads=8,
            num_local_experts=8,
            num_experts_per_tok=2,
            vocab_size=32000,
        )
        model = MixtralForCausalLM(config).eval()
        if apart:
            for layer in model.model.layers:
                layer.mlp.experts = _experts_apart(torch, config)
    torch.cuda.empty_cache()
    notes.read_only(_weights(model))
    _decode(torch, model, notes, [512, 512], 24)


def _experts_apart(torch: Any, config: Any) -> Any:
    """The experts of a layer, each in tensors of its own, and only those run that a token is routed to."""

    class Experts(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            wide, narrow = config.intermediate_size, config.hidden_size
            self.up = torch.nn.ModuleList(
                torch.nn.Linear(narrow, 2 * wide, bias=False) for _ in range(config.num_local_experts)
            )
            self.down = torch.nn.ModuleList(
                torch.nn.Linear(wide, narrow, bias=False) for _ in range(config.num_local_experts)
            )

        def forward(self, x: Any, chosen: Any, weights: Any) -> Any:
            out = torch.zeros_like(x)
            for expert in chosen.unique().tolist():
                token, place = torch.where(chosen == expert)
                gate, up = self.up[expert](x[token]).chunk(2, dim=-1)
                y = self.down[expert](torch.nn.functional.silu(gate) * up)
                out.index_add_(0, token, (y * weights[token, place, None]).to(out.dtype))
            return out

    return Experts()


def moe(notes: Notes) -> None:
    """Mixtral's architecture, 12 layers of 8 experts: 8.7 GB. A layer's experts are one tensor."""
    _mixture(notes, apart=False)


def routed(notes: Notes) -> None:
    """The same with each expert in tensors of its own, so that those that no token goes to are not named."""
    _mixture(notes, apart=True)


def train(notes: Notes) -> None:
    """Llama's architecture, 1.1 billion parameters in bf16, AdamW: about 9 GB and activations."""
    with _built_on_gpu() as torch:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
            vocab_size=32000,
        )
        model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(0, 32000, (4, 1024), device="cuda")
    for step in range(5):
        notes.passes(f"step {step}")
        notes.read_only(_weights(model))
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        notes.writable(_weights(model))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()


def chat(notes: Notes) -> None:
    """Llama's architecture, 6.7 billion parameters, and a cache that grows through three turns."""
    with _built_on_gpu() as torch:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            vocab_size=32000,
            max_position_embeddings=16384,
        )
        model = LlamaForCausalLM(config).eval()
    notes.read_only(_weights(model))
    cache = None
    with torch.no_grad():
        for turn in range(3):
            tokens = torch.randint(0, 32000, (1, 1500), device="cuda")
            notes.passes(f"prefill {turn}")
            out = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            for step in range(12):
                notes.passes(f"decode {turn}.{step}")
                tokens = out.logits[:, -1:].argmax(-1)
                out = model(tokens, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                tokens.cpu()


MODELS: dict[str, Callable[[Notes], None]] = {
    "llama": llama,
    "moe": moe,
    "routed": routed,
    "train": train,
    "chat": chat,
}


def merge(trace: Path, notes: Path, out: Path) -> int:
    """Put the program's notes among the shim's lines by time. Returns the number of launches."""
    lines = trace.read_text().splitlines()
    clock = json.loads(lines[0])["clock_ns"]
    pending = [json.loads(line) for line in notes.read_text().splitlines()]
    homes: dict[int, tuple[int, int]] = {}  # allocation: base, bytes
    launches = 0

    def note(line: dict[str, Any]) -> str | None:
        line = {"op": line["op"], "t": (line.pop("ns") - clock) / 1e3, **line}
        if "address" in line:
            address = line.pop("address")
            for number, (base, size) in homes.items():
                if base <= address < base + size:
                    at, length = address - base, line.pop("bytes")
                    return json.dumps({**line, "o": [[number, at, at + length]]})
            return None  # smaller than a chunk: it is in no trace
        return json.dumps(line)

    with lzma.open(out, "wt", preset=9) as file:
        for text in lines:
            line = json.loads(text)
            while pending and "t" in line and (pending[0]["ns"] - clock) / 1e3 <= line["t"]:
                if text_of_note := note(pending.pop(0)):
                    print(text_of_note, file=file)
            if line.get("op") == "alloc":
                homes[line["a"]] = line["address"], line["bytes"]
            elif line.get("op") == "free":
                homes.pop(line["a"], None)
            launches += line.get("op") == "launch"
            # A launch names an object once for each of its parameters that points there.
            if objects := line.get("o"):
                line["o"] = [o for i, o in enumerate(objects) if o not in objects[:i]]
                text = json.dumps(line, separators=(",", ":"))
            print(text, file=file)
    return launches


def record(name: str, out: Path) -> None:
    trace, notes = out / f"{name}.trace", out / f"{name}.notes"
    greenboost = shutil.which("greenboost")
    start = [greenboost] if greenboost else [sys.executable, "-m", "tierd.cli"]
    program = [sys.executable, str(Path(__file__).resolve()), "--run", name, str(notes)]
    begun = time.monotonic()
    subprocess.run(
        [*start, "run", *FLAGS, "--record", str(trace), "--", *program],
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
        check=True,
    )
    launches = merge(trace, notes, out / f"{name}.jsonl.xz")
    size = (out / f"{name}.jsonl.xz").stat().st_size
    print(f"{name}: {launches} launches, {size} bytes, {time.monotonic() - begun:.1f} s", flush=True)
    trace.unlink()
    notes.unlink()


def main(argv: list[str]) -> int:
    if argv[:1] == ["--run"]:
        MODELS[argv[1]](Notes(Path(argv[2])))
        return 0
    if not argv or not set(argv[1:]) <= MODELS.keys():
        print(f"usage: record_models.py OUTDIR [{'|'.join(MODELS)}]...", file=sys.stderr)
        return 2
    out = Path(argv[0]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in argv[1:] or MODELS:
        try:
            record(name, out)
        except subprocess.CalledProcessError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

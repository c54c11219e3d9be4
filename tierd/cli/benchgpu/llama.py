# SPDX-License-Identifier: GPL-2.0-or-later
"""The program that `greenboost bench gpu` measures: a Llama with random weights, prefill and decode.

    llama.py --layers 4 --hidden 2048 --intermediate 8192 --heads 32 --kv-heads 8 --vocabulary 32000 \\
        --prompt 512 --tokens 8 --repeat 2 --logits FILE < /dev/null

A PyTorch program like anybody's: it knows nothing of GreenBoost, and runs with the user's Python.

It prints one JSON object a line. At ``{"event": "mark", ...}`` it waits for a line on its standard
input, so that whoever started it can read counters in between; at the end of the input it just goes on.
Times are seconds: `seconds` by the clock from before the call until its result is there, `gpu_seconds`
between two events on the GPU.

The same weights come out in every mode: each parameter is drawn on the GPU by a generator with a seed
of its own, and copied to where the mode wants it.
"""

from __future__ import annotations

import argparse
import array
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

# Before torch is loaded. Without it cuBLAS may choose other sums from run to run.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

BEGAN = time.perf_counter()
# What libraries print is not for the reader of our lines.
SAYS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)

import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel  # noqa: E402

LAUNCHES = 2000
"""Empty launches in one measurement of what a launch costs."""
WARMUPS = 4
"""Prefills before those that are measured: what the first write below VRAM is not written again."""
PAUSE = 15.0
"""Seconds of passes after which there is a mark, within a phase as at its ends: how fast a disk is that
others use, too, changes in less."""
PLANNING = 11
"""Forward passes that FlexTensor watches before it has a plan: 1 to discover, 10 to profile."""


def say(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), file=SAYS, flush=True)


def mark(name: str) -> None:
    """Tell that something begins or ends, and wait until whoever listens has looked."""
    global BEGAN
    say("mark", name=name)
    at = time.perf_counter()
    sys.stdin.readline()
    BEGAN += time.perf_counter() - at  # that time is not ours


def skip_init() -> None:
    """Make models without drawing weights that would be replaced."""
    for one in (torch.nn.Linear, torch.nn.Embedding):
        one.reset_parameters = lambda self: None
    for one in (LlamaModel, LlamaForCausalLM):
        one._init_weights = lambda self, module: None


def drawn(model: Any, seed: int, device: str) -> Iterator[tuple[str, Any, Any]]:
    """The name, the parameter and its values for each, one at a time. Norms keep their ones."""
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.dim() < 2:
            yield name, parameter, torch.ones_like(parameter, device=device)
            continue
        generator = torch.Generator(device).manual_seed(seed * 1_000_003 + number)
        if parameter.device.type == torch.device(device).type:
            yield name, parameter, parameter.data.normal_(0.0, 0.02, generator=generator)
        else:
            values = torch.empty_like(parameter, device=device)
            yield name, parameter, values.normal_(0.0, 0.02, generator=generator)


def build(options: argparse.Namespace, config: Any) -> Any:
    """The model, ready to run, with its weights where the mode wants them."""
    skip_init()
    torch.set_default_dtype(torch.bfloat16)
    if options.offload == "none":
        with torch.device(options.device):
            model = LlamaForCausalLM(config)
        for _ in drawn(model, options.seed, options.device):
            pass
        return model.eval()
    # Pages that nobody writes to take no memory, so this may be larger than the RAM that it may use.
    model = LlamaForCausalLM(config).eval()
    return flextensor(options, model) if options.offload == "flextensor" else accelerate(options, model)


def accelerate(options: argparse.Namespace, model: Any) -> Any:
    """As device_map="auto" with max_memory does it: layers in order on the GPU, in RAM, on disk."""
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import offload_weight, save_offload_index, set_module_tensor_to_device

    limits: dict[Any, int] = {"cpu": options.ram}
    if options.device != "cpu":
        limits[0] = options.vram
    places = infer_auto_device_map(model, max_memory=limits, no_split_module_classes=["LlamaDecoderLayer"])
    index: dict[str, Any] = {}
    for name, parameter, values in drawn(model, options.seed, options.device):
        place = next(places[part] for part in prefixes(name) if part in places)
        if place == "disk":
            index = offload_weight(values.cpu(), name, options.disk, index)
            set_module_tensor_to_device(model, name, "meta")
        elif place == "cpu":
            parameter.data.copy_(values)
        else:
            set_module_tensor_to_device(model, name, place, value=values)
    if "disk" in places.values():
        save_offload_index(index, options.disk)
    return dispatch_model(model, places, main_device=options.device, offload_dir=options.disk)


def prefixes(name: str) -> Iterator[str]:
    """A parameter's name, its module's, that one's parent's ..., the whole model's."""
    parts = name.split(".")
    for length in range(len(parts), -1, -1):
        yield ".".join(parts[:length])


def flextensor(options: argparse.Namespace, model: Any) -> Any:
    import flextensor

    for _name, parameter, values in drawn(model, options.seed, options.device):
        parameter.data.copy_(values)
    for module in (model.model.embed_tokens, model.model.norm, model.model.rotary_emb, model.lm_head):
        module.to(options.device)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    return flextensor.offload(
        model,
        config=flextensor.OffloadConfig(
            gpu_device=0,
            include_patterns=["model.layers.*"],
            max_gpu_mem_fraction=options.vram / total,
        ),
    )


class Passes:
    """Forward passes, timed."""

    def __init__(self, options: argparse.Namespace, model: Any) -> None:
        self.model = model
        self.cuda = options.device.startswith("cuda")
        self.seconds = options.seconds
        self.turns = options.turns
        self.last = 0.0  # seconds of the last pass
        self.unmarked = 0.0  # and of all since the last mark

    def left(self, share: float = 1.0, per_pass: int = 1) -> bool:
        """Whether, within this share of the time, `per_pass` more passes like the last have room."""
        return bool(time.perf_counter() - BEGAN + self.last * per_pass < self.seconds * share)

    def mark(self, name: str) -> None:
        mark(name)
        self.unmarked = 0.0

    def pause(self, phase: str) -> None:
        """A mark between passes of a phase that takes long."""
        if self.unmarked > PAUSE:
            self.mark(f"{phase}-pause")

    def run(self, phase: str, tokens: Any, cache: Any = None) -> tuple[Any, Any]:
        """One pass over `tokens`; its output. The time is until the next token is known here."""
        if self.turns is not None:
            os.sched_setaffinity(0, {self.turns})  # of this thread, and of what it starts from now on
            mark("turn")
        began = time.perf_counter()
        if self.cuda:
            first, second = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
        out = self.model(input_ids=tokens, past_key_values=cache, use_cache=True)
        following = out.logits[:, -1].argmax(-1, keepdim=True)
        if self.cuda:
            second.record()
        following.tolist()
        self.last = time.perf_counter() - began
        self.unmarked += self.last
        gpu = first.elapsed_time(second) / 1e3 if self.cuda else None
        say("pass", phase=phase, seconds=self.last, gpu_seconds=gpu)
        return out, following


def launch_seconds() -> float:
    """What a launch takes whose kernel has nothing to do, median of 7 times LAUNCHES."""
    x = torch.zeros(1, device="cuda")
    took = []
    for _ in range(8):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(LAUNCHES):
            x.add_(1)
        torch.cuda.synchronize()
        took.append((time.perf_counter() - began) / LAUNCHES)
    return sorted(took[1:])[3]


def measure(options: argparse.Namespace, model: Any) -> None:
    generator = torch.Generator("cpu").manual_seed(options.seed)
    prompt = torch.randint(0, options.vocabulary, (1, options.prompt), generator=generator)
    prompt = prompt.to(options.device)
    passes = Passes(options, model)
    if options.offload == "flextensor":
        began = time.perf_counter()
        for _ in range(PLANNING):
            passes.run("plan", prompt)
        say("planned", seconds=time.perf_counter() - began)

    out, following = passes.run("prefill-warmup", prompt)
    for _ in range(1, WARMUPS):
        # One pass is warm-up enough where a pass takes long.
        if passes.left(0.2, per_pass=10):
            del out  # with its cache: the next pass is to find as much room as the first
            out, following = passes.run("prefill-warmup", prompt)
    passes.mark("prefill")
    for number in range(options.repeat):
        if number and not passes.left(0.5):
            break
        passes.pause("prefill")
        del out
        out, following = passes.run("prefill", prompt)
    mark("prefill-end")
    digest = hashlib.sha256(bytes_of(out.logits)).hexdigest()
    last = [out.logits[0, -1].float().cpu()]
    tokens = [int(following)]

    cache = out.past_key_values
    del out
    measured = 0
    for number in range(options.warmup + options.tokens):
        # One pass is warm-up enough where a pass takes long.
        if not measured and (number >= options.warmup or (number and not passes.left(per_pass=10))):
            passes.mark("decode")
            measured = 1
        elif measured:
            measured += 1
        if measured > options.tokens or (measured > 1 and not passes.left()):
            break
        if measured:
            passes.pause("decode")
        phase = "decode" if measured else "decode-warmup"
        out, following = passes.run(phase, following, cache)
        last.append(out.logits[0, -1].float().cpu())
        tokens.append(int(following))
        del out
    mark("decode-end")
    values = array.array("f")
    for logits in last:
        values.extend(logits.tolist())
    with open(options.logits, "wb") as file:
        values.tofile(file)
    say("answer", prefill_sha256=digest, tokens=tokens)


def bytes_of(logits: Any) -> bytes:
    """The bits of bf16 values, in order."""
    return bytes(logits.cpu().contiguous().view(torch.int16).numpy().data)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name in ("layers", "hidden", "intermediate", "heads", "kv-heads", "vocabulary"):
        parser.add_argument("--" + name, type=int, required=True)
    parser.add_argument("--prompt", type=int, required=True, help="tokens of the prefill")
    parser.add_argument("--tokens", type=int, required=True, help="tokens to decode")
    parser.add_argument("--warmup", type=int, default=3, help="tokens decoded before those")
    parser.add_argument("--repeat", type=int, required=True, help="prefills")
    parser.add_argument("--logits", required=True, help="file for the last token's logits of each pass")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600.0, help="from the start; passes end by then")
    parser.add_argument("--offload", choices=["none", "accelerate", "flextensor"], default="none")
    parser.add_argument("--vram", type=int, default=0, help="bytes, for --offload")
    parser.add_argument("--ram", type=int, default=0, help="bytes, for --offload accelerate")
    parser.add_argument("--disk", help="a directory for what RAM does not hold, for --offload accelerate")
    parser.add_argument("--turns", type=int, help="a mark before each pass as well, and the processor for it")
    parser.add_argument("--device", default="cuda:0", help="cpu: to try this program without a GPU")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would write to all memory that is asked for, once more.
    torch.utils.deterministic.fill_uninitialized_memory = False
    # It makes a plan for each new length of the cache: 30 to 50 ms of every token, on the host, in which
    # no mode can do anything.
    torch.backends.cuda.enable_cudnn_sdp(False)
    config = LlamaConfig(
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
        vocab_size=options.vocabulary,
        max_position_embeddings=max(4096, options.prompt + options.tokens + options.warmup),
        attn_implementation="sdpa",
    )
    cuda = options.device.startswith("cuda")
    if cuda:
        torch.cuda.init()
        torch.zeros(1, device=options.device)
    say("started", seconds=time.perf_counter() - BEGAN)
    mark("load")
    began = time.perf_counter()
    model = build(options, config)
    if cuda:
        torch.cuda.synchronize()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    say("loaded", seconds=time.perf_counter() - began, weights_bytes=weights)
    mark("load-end")
    if cuda and options.offload == "none":
        say("launch", seconds=launch_seconds())
    with torch.inference_mode():
        measure(options, model)
    say("done")


if __name__ == "__main__":
    with torch.no_grad():
        main()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Stands in for a Python that has PyTorch: `bench_gpu_python.py PROGRAM.py ARGUMENT...`

For machine.py it describes a GPU. For llama.py it speaks that program's protocol, and in place of a
model holds as much memory as the weights would take and writes over it in each pass. What memory holds
in the end is what it hands out as logits, so that these are wrong if a chunk was lost.

BENCH_STUB tells it to go wrong: "no-torch"; "random" (logits); or in all modes under GreenBoost "other"
(logits), "fail", "slow" (it says 1.5 s of a pass, 1 s without), "hang" (after one token; when that is
read it makes the file BENCH_STUB_SIGN), "mute" (before the first pass). With --turns it fails if it is
another's turn as well.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import hashlib
import json
import os
import sys
import termios
import time

PIECE = 8 << 20
"""Bytes of one allocation: several chunks."""


def say(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def unread() -> int:
    """Bytes of what was said that nobody has read yet."""
    return int.from_bytes(fcntl.ioctl(sys.stdout, termios.FIONREAD, bytes(4)), sys.byteorder)


def mark(name: str) -> None:
    say("mark", name=name)
    sys.stdin.readline()


def machine() -> dict[str, object]:
    if os.environ.get("BENCH_STUB") == "no-torch":
        return {"error": "no PyTorch here"}
    rates = {"h2d_bytes_per_second": 2e9, "d2h_bytes_per_second": 1e9, "both_bytes_per_second": 5e8}
    return {
        "gpu": {"name": "Stub", "uuid": "", "total_bytes": 16 << 30, "free_bytes": 16 << 30},
        "packages": {"torch": "1", "transformers": "2", "accelerate": None, "flextensor": None},
        "copies": [{"size_bytes": 1 << 20, **rates}],
    }


class Memory:
    """So much VRAM, in pieces."""

    def __init__(self, size: int) -> None:
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxSetCurrent", context)
        self.pieces = []
        for _ in range(size // PIECE):
            piece = ctypes.c_uint64()
            self.call("cuMemAlloc_v2", ctypes.byref(piece), ctypes.c_size_t(PIECE))
            self.pieces.append(piece)

    def call(self, name: str, *arguments: object) -> None:
        status = getattr(self.cuda, name)(*arguments)
        if status:
            raise OSError(f"{name} failed with {status}")

    def write(self, value: int) -> None:
        for number, piece in enumerate(self.pieces):
            self.call("cuMemsetD32_v2", piece, value + number, ctypes.c_size_t(PIECE // 4))
            for at in range(4, PIECE, 1 << 20):  # else its chunks would not be read of the spill file
                self.call("cuMemsetD32_v2", ctypes.c_uint64(piece.value + at), at, ctypes.c_size_t(1))
        self.call("cuCtxSynchronize")

    def read(self) -> list[int]:
        found = []
        for piece in self.pieces:
            word = ctypes.c_uint32()
            self.call("cuMemcpyDtoH_v2", ctypes.byref(word), piece, ctypes.c_size_t(4))
            found.append(word.value)
        return found


def take_turn(file: str) -> None:
    """Fails if the other has its turn, or had none since ours. One file for the two."""
    os.close(os.open(f"{file}-taken", os.O_CREAT | os.O_EXCL))
    with open(file, "a+") as last:
        last.seek(0)
        if last.read() == str(os.getpid()):
            raise SystemExit("twice in a row")
        last.truncate(0)
        last.write(str(os.getpid()))


def llama(options: dict[str, str]) -> None:
    wrong = os.environ.get("BENCH_STUB") if "GREENBOOST_SOCKET" in os.environ else None
    vocabulary = int(options["vocabulary"])
    say("started", seconds=0.0)
    mark("load")
    if wrong == "mute":
        time.sleep(3600)
    # The embedding and the head alone.
    memory = Memory(4 * int(options["hidden"]) * vocabulary)
    memory.write(0)
    say("loaded", seconds=0.25, weights_bytes=1)
    mark("load-end")
    if wrong == "fail":
        raise SystemExit("RuntimeError: CUDA error: out of memory")
    say("launch", seconds=1e-6)
    logits = array.array("f")
    written = 0
    turn = os.path.join(os.path.dirname(options["logits"]), "turn")

    def one_pass(phase: str) -> None:
        nonlocal written
        if "turns" in options:
            mark("turn")
            take_turn(turn)
        began = time.perf_counter()
        written += 1000
        memory.write(written)
        seconds = time.perf_counter() - began
        if os.environ.get("BENCH_STUB") == "slow":
            seconds = 1.5 if wrong else 1.0
        say("pass", phase=phase, seconds=seconds, gpu_seconds=None)
        found = memory.read()
        logits.extend([found[n % len(found)] for n in range(vocabulary)])
        if "turns" in options:
            os.unlink(f"{turn}-taken")

    mark("prefill")
    for _ in range(int(options["repeat"])):
        one_pass("prefill")
    mark("prefill-end")
    del logits[:-vocabulary]
    digest = hashlib.sha256(logits.tobytes()).hexdigest()
    mark("decode")
    for number in range(int(options["tokens"])):
        if wrong == "hang" and number == 1:
            if "BENCH_STUB_SIGN" in os.environ:
                while unread():
                    time.sleep(0.001)
                open(os.environ["BENCH_STUB_SIGN"], "w").close()
            time.sleep(3600)
        if number == 1:
            mark("decode-pause")
        one_pass("decode")
    mark("decode-end")
    if wrong == "other":
        logits[-1] += 1
    if os.environ.get("BENCH_STUB") == "random":
        logits[-1] += os.getpid()
    with open(options["logits"], "wb") as file:
        logits.tofile(file)
    say("answer", prefill_sha256=digest, tokens=list(range(1 + int(options["tokens"]))))
    say("done")


if __name__ == "__main__":
    program, *arguments = sys.argv[1:]
    if program.endswith("machine.py"):
        print(json.dumps(machine()), flush=True)
    else:
        llama(dict(argument.removeprefix("--").split("=", 1) for argument in arguments))

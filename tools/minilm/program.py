# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's program from its command line: two batches of sentences with other work in between."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

import numpy as np

from minilm import othertask
from minilm.driver import CudaError, Driver
from minilm.kernels import MODULE
from minilm.model import Model
from minilm.sentences import FIRST, SECOND
from minilm.weights import model_directory

__all__ = ["main"]


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m minilm",
        description="Embeds two batches of sentences with all-MiniLM-L6-v2 on a CUDA device.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the embeddings (npz)")
    parser.add_argument(
        "--between",
        type=int,
        default=0,
        metavar="MIB",
        help="other work between the batches: fill and read back so many MiB of device memory",
    )
    parser.add_argument(
        "--hold", action="store_true", help="keep the model loaded until the program is ended"
    )
    return parser.parse_args(argv)


def _say(text: str) -> None:
    print(f"  {text}", flush=True)


def _run(arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    with Driver() as driver:
        program = MODULE.load(driver)
        free, total = driver.memory_info()
        _say(f"device: {driver.device_name()}, {free / 2**20:.1f} MiB free of {total / 2**20:.1f} MiB")
        model = Model(driver, program, model_directory())
        loaded = time.monotonic()
        _say(f"model: {model.weights.size / 1e6:.1f} MB of weights uploaded in {loaded - started:.2f} s")

        first = model.embed(FIRST)
        first_done = time.monotonic()
        _say(f"batch 1: {len(FIRST)} sentences in {first_done - loaded:.2f} s")
        if arguments.between:
            othertask.run(driver, program, arguments.between << 20)
            _say(f"other work: {arguments.between} MiB filled and read back")
        second_begins = time.monotonic()
        second = model.embed(SECOND)
        ended = time.monotonic()
        _say(f"batch 2: {len(SECOND)} sentences in {ended - second_begins:.2f} s")

        np.savez(
            arguments.out,
            first=first,
            second=second,
            weights_bytes=model.weights.size,
            seconds=ended - started,
        )
        if arguments.hold:
            _say("done; the model stays loaded until the program is ended")
            while True:
                signal.pause()


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, or 1 with a line on stderr where the device failed."""
    arguments = _arguments(argv)
    try:
        _run(arguments)
    except CudaError as error:
        print(f"minilm: {error}", file=sys.stderr)
        return 1
    return 0

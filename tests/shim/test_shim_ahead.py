# SPDX-License-Identifier: GPL-2.0-or-later
"""A program that allocates bit by bit: its arenas are made before it asks for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.unit.daemon_harness import CHUNK, running
from tierd import ahead
from tierd.ahead import ArenasAhead
from tierd.arena import Arena

from .tiers import ROOT, Runner

PROGRAM = """
import ctypes
from ctypes import byref, c_size_t, c_uint, c_uint64, c_void_p
cuda = ctypes.CDLL("libcuda.so.1")
context = c_void_p()
assert cuda.cuInit(0) == 0
assert cuda.cuDevicePrimaryCtxRetain(byref(context), 0) == 0
assert cuda.cuCtxSetCurrent(context) == 0
addresses = [c_uint64() for _ in range(24)]
for i, address in enumerate(addresses):
    assert cuda.cuMemAlloc_v2(byref(address), c_size_t(2 << 20)) == 0
    assert cuda.cuMemsetD32_v2(address, i, c_size_t(512 << 10)) == 0
got = (c_uint * 4)()
for i, address in enumerate(addresses):
    assert cuda.cuMemcpyDtoH_v2(got, address, c_size_t(16)) == 0
    assert list(got) == [i] * 4
print("right")
"""


async def test_only_the_first_arena_is_waited_for(
    runner: Runner, shim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 MiB of VRAM and 48 in use, so of 4 MiB ten arenas at least."""
    ready: dict[int, bool] = {}  # whether each was begun before it was granted
    take = ArenasAhead.take

    async def taken(self: ArenasAhead, id: int) -> Arena | None:
        ready[id] = id in self
        return await take(self, id)

    monkeypatch.setattr(ArenasAhead, "take", taken)
    monkeypatch.setattr(ahead, "PATIENCE", float("inf"))
    directory = tmp_path / "daemon"
    directory.mkdir()
    async with running(directory, ram="64MiB", arena="4MiB", extents=0) as conf:
        environ = runner.environment(
            "64MiB",
            LD_PRELOAD=str(shim),
            GREENBOOST_SOCKET=str(conf.socket),
            GREENBOOST_CUDA_DRIVER=str(runner.softcuda),
            GREENBOOST_VRAM=str(4 * CHUNK),
        )
        with trio.fail_after(600):
            done = await trio.run_process(
                [sys.executable, "-c", PROGRAM],
                env=environ,
                cwd=ROOT,
                check=False,
                capture_stdout=True,
                stderr=subprocess.STDOUT,
            )
        assert (done.returncode, done.stdout) == (0, b"right\n")
        assert len(ready) >= 10
        assert [id for id in ready if not ready[id]] == [1]

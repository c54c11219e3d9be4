# SPDX-License-Identifier: GPL-2.0-or-later
"""A full T3, and a daemon or an application that is killed."""

from __future__ import annotations

from .pieces import BEGIN, FULL, SMALL
from .tiers import Runner

ORPHAN = (
    BEGIN
    + """
import os, select, signal, socket, struct
import numpy as np
MIB = 1 << 20
data, held = np.ones(MIB, dtype=np.uint32), []
for i in range(24):
    held.append(c_uint64())
    assert cuda.cuMemAlloc_v2(byref(held[i]), c_size_t(4 * MIB)) == 0
    assert cuda.cuMemcpyHtoD_v2(held[i], c_void_p(data.ctypes.data), c_size_t(data.nbytes)) == 0
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as daemon:
    daemon.connect(os.environ["GREENBOOST_SOCKET"])
    pid = struct.unpack("3i", daemon.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
gone = os.pidfd_open(pid)
os.kill(pid, signal.SIGKILL)
select.select([gone], [], [])
results = set()
for address in held[::-1] + held:
    results.add(cuda.cuMemcpyDtoH_v2(c_void_p(data.ctypes.data), address, c_size_t(data.nbytes)))
    assert (data == 1).all()
print(0 in results, len(results) > 1)
"""
)


def test_a_killed_daemon_is_an_error_and_no_endless_loop(runner: Runner) -> None:
    result = runner.tiered(SMALL, "-c", ORPHAN)
    assert (result.status, result.out) == (0, "True True\n"), result.err[-2000:]
    assert len(result.err.splitlines()) < 100


KILLED = (
    BEGIN
    + """
import os, signal
address = c_uint64()
for _ in range(10):
    assert cuda.cuMemAlloc_v2(byref(address), c_size_t(16 << 20)) == 0
    assert cuda.cuMemsetD8_v2(address, ctypes.c_ubyte(1), c_size_t(16 << 20)) == 0
os.kill(os.getpid(), signal.SIGKILL)
"""
)


def test_a_killed_application_leaves_nothing(runner: Runner) -> None:
    result = runner.tiered(SMALL, "-c", KILLED)
    assert result.status == 128 + 9, result.err
    assert result.report["spill"][0]["used_bytes"] == 0
    assert not (runner.folder / "spill").exists()


def test_a_full_t3_refuses_and_loses_nothing(runner: Runner) -> None:
    result = runner.tiered("--chunk 2MiB --vram 40MiB --ram 16MiB --spill {dir}/spill:64MiB", "-c", FULL)
    assert result.status == 0, result.err
    assert 40 + 16 + 64 - 16 <= int(result.out) <= 40 + 16 + 64

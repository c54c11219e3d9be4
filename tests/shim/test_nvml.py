# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory totals by NVML, on a software NVML: for a device that the process uses they are CUDA's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .pieces import SMALL
from .tiers import Runner

PROGRAM = """
import ctypes, json, os, uuid
from ctypes import byref, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p

cuda, nvml = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libnvidia-ml.so.1")
assert cuda.cuInit(0) == 0

def name(device):
    raw = (ctypes.c_ubyte * 16)()
    assert cuda.cuDeviceGetUuid_v2(raw, device) == 0
    return f"GPU-{uuid.UUID(bytes=bytes(raw))}"

# The other way round than CUDA: the order of devices is not the same in both.
os.environ["SOFTNVML_UUIDS"] = f"{name(1)} {name(0)}"
count = c_uint()
assert nvml.nvmlInit_v2() == 0
assert nvml.nvmlDeviceGetCount_v2(byref(count)) == 0 and count.value == 2

class Version2(ctypes.Structure):
    _fields_ = [("version", c_uint), *((n, c_ulonglong) for n in ("total", "reserved", "free", "used"))]

def by_nvml(index):
    handle, memory = c_void_p(), (c_ulonglong * 3)()
    assert nvml.nvmlDeviceGetHandleByIndex_v2(index, byref(handle)) == 0
    assert nvml.nvmlDeviceGetMemoryInfo(handle, memory) == 0
    second = Version2(version=0x02000028)
    assert nvml.nvmlDeviceGetMemoryInfo_v2(handle, byref(second)) == 0
    assert nvml.nvmlDeviceGetMemoryInfo_v2(handle, byref(Version2(version=7))) == 25
    assert second.total == second.reserved + second.free + second.used
    assert (second.total, second.free) == (memory[0], memory[1])
    assert memory[0] == memory[1] + memory[2]
    return memory[0], memory[1]

def by_cuda():
    free, total = c_size_t(), c_size_t()
    assert cuda.cuMemGetInfo_v2(byref(free), byref(total)) == 0
    return total.value, free.value

GIB = 1 << 30
real = 80 * GIB, 79 * GIB
print(by_nvml(0) == real, by_nvml(1) == real)  # nobody has used a device yet

context, at = c_void_p(), c_uint64()
assert cuda.cuDevicePrimaryCtxRetain(byref(context), 0) == 0
assert cuda.cuCtxSetCurrent(context) == 0
size = c_size_t()
assert cuda.cuDeviceTotalMem_v2(byref(size), 0) == 0
below = by_nvml(1)[0] - 80 * GIB
print(below == size.value - (64 << 20) > 0)  # how much VRAM there will be is not decided yet

assert cuda.cuMemAlloc_v2(byref(at), c_size_t(8 << 20)) == 0
print(by_nvml(1) == by_cuda(), by_nvml(0) == real)
nvml.nvmlShutdown.restype = ctypes.c_int
print(nvml.nvmlShutdown())  # the software NVML has none
"""


@pytest.fixture
def nvml(runner: Runner) -> Path:
    """A directory with the software NVML."""
    folder = runner.folder / "nvml"
    folder.mkdir()
    source = Path(__file__).parent / "nvml" / "soft.c"
    command = ["cc", "-O2", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    command += ["-Wl,-soname,libnvidia-ml.so.1", "-o", str(folder / "libnvidia-ml.so.1"), str(source)]
    subprocess.run(command, check=True)
    return folder


def test_nvml_says_of_each_device_what_cuda_says(runner: Runner, nvml: Path) -> None:
    path = f"{runner.softcuda.parent}:{nvml}"
    result = runner.tiered(SMALL, "-c", PROGRAM, SOFTCUDA_DEVICES="2", LD_LIBRARY_PATH=path)
    assert result.status == 0, result.err
    assert result.out.split("\n")[:4] == ["True True", "True", "True True", "13"]


WITHOUT = """
import os
print("greenboost_nvml" in open("/proc/self/maps").read(), os.environ.get("GREENBOOST_NVML"))
"""


def test_where_there_is_no_nvml_none_appears(runner: Runner) -> None:
    """Programs take a machine with NVML for one with NVIDIA's whole driver."""
    for place in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/nvidia/lib64", "/usr/lib/wsl/lib"):
        if Path(place, "libnvidia-ml.so.1").exists():
            pytest.skip("this machine has NVML")
    result = runner.tiered(SMALL, "-c", WITHOUT)
    assert (result.status, result.out) == (0, "False None\n"), result.err

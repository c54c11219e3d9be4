# SPDX-License-Identifier: GPL-2.0-or-later
"""What a GPU really has in use, from outside: NVML, which comes with NVIDIA's driver."""

from __future__ import annotations

import ctypes
from types import TracebackType
from typing import Self

__all__ = ["VramMeter"]

_LIBRARY = "libnvidia-ml.so.1"


class _Memory(ctypes.Structure):
    """nvmlMemory_t, bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class VramMeter:
    """The most bytes in use on one GPU, all processes together, above what was in use when this was made.

    `most` is None where there is no NVML, and before the first look(). The figure of one process would
    need its number as the driver knows it, which in a container is another.
    """

    def __init__(self, uuid: str) -> None:
        self.most: int | None = None
        self._nvml: ctypes.CDLL | None = None
        self._device = ctypes.c_void_p()
        self._before = 0
        try:
            nvml = ctypes.CDLL(_LIBRARY)
        except OSError:
            return
        if nvml.nvmlInit_v2():
            return
        self._nvml = nvml
        name = (uuid if uuid.startswith("GPU-") else f"GPU-{uuid}").encode()
        found = bool(uuid) and not nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(self._device))
        if not found and nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self._device)):
            self.close()
            return
        self._before = self._used() or 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None

    def look(self) -> None:
        """Have `most` take in what is in use now."""
        used = self._used()
        if used is not None:
            self.most = max(self.most or 0, used - self._before)

    def _used(self) -> int | None:
        memory = _Memory()
        if self._nvml is None or self._nvml.nvmlDeviceGetMemoryInfo(self._device, ctypes.byref(memory)):
            return None
        return int(memory.used)

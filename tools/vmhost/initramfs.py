# SPDX-License-Identifier: GPL-2.0-or-later
"""The initramfs: busybox, the few modules that lead to the host's files, and what this run is to do.

Made anew for every run, in a fraction of a second: cheaper than knowing when a kept one is stale.
"""

from __future__ import annotations

import lzma
import stat
from collections.abc import Iterator
from pathlib import Path

from . import VmError
from .kernel import Kernel

# Where a kernel has one of them built in, it is no module and not missed.
_MODULES = ("virtio_pci", "virtio_console", "virtiofs", "overlay", "nvme")
# A queue for polling, which costs nothing until somebody polls.
_OPTIONS = {"nvme": " poll_queues=1"}
_HERE = Path(__file__).resolve().parent


def build(kernel: Kernel, busybox: Path, settings: str) -> bytes:
    """The archive. `settings` is sourced by init.sh and guest.sh, which say what they expect in it."""
    files: dict[str, tuple[int, bytes]] = {
        name: (stat.S_IFDIR | 0o755, b"")
        for name in ("bin", "dev", "proc", "sys", "host", "mnt", "modules", "new")
    }
    files["bin/busybox"] = (stat.S_IFREG | 0o755, busybox.read_bytes())
    files["init"] = (stat.S_IFREG | 0o755, (_HERE / "init.sh").read_bytes())
    files["guest.sh"] = (stat.S_IFREG | 0o755, (_HERE / "guest.sh").read_bytes())
    files["settings"] = (stat.S_IFREG | 0o644, settings.encode())
    # busybox's insmod resolves no dependencies and not every release of it can unpack: both done here.
    order = []
    for position, path in enumerate(_load_order(kernel.modules)):
        module = _module_name(path)
        name = f"{position:02}-{module}.ko"
        files[f"modules/{name}"] = (stat.S_IFREG | 0o644, _module(kernel.modules / path))
        order.append(name + _OPTIONS.get(module, ""))
    files["modules/order"] = (stat.S_IFREG | 0o644, "".join(f"{line}\n" for line in order).encode())
    return b"".join(_cpio(files))


def _module_name(path: str) -> str:
    return path.rsplit("/", 1)[-1].partition(".ko")[0].replace("-", "_")


def _load_order(modules: Path) -> list[str]:
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    by_name = {_module_name(path): path for path in needs}
    order: dict[str, None] = {}
    for name in _MODULES:
        if name in by_name:
            # modules.dep has the last to load first.
            module = by_name[name]
            order.update(dict.fromkeys([*reversed(needs[module]), module]))
    return list(order)


def _module(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(content)
    if path.suffix != ".ko":
        raise VmError(f"cannot unpack {path}: only .ko and .ko.xz are known")
    return content


def _cpio(files: dict[str, tuple[int, bytes]]) -> Iterator[bytes]:
    """The "newc" format of Documentation/driver-api/early-userspace/buffer-format.rst."""
    for number, (name, (mode, content)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], start=1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        yield header + bytes(-len(header) % 4)
        yield content + bytes(-len(content) % 4)

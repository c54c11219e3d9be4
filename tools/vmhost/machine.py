# SPDX-License-Identifier: GPL-2.0-or-later
"""The virtual machine's processes: QEMU, and virtiofsd for the host's files.

virtiofs and not 9p: a Python program opens hundreds of files, and starting one took five times as
long over QEMU's 9p server. Emulation and not KVM, unless asked for: it works everywhere, on machines
that are themselves virtual too, and what runs is the same everywhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from . import ROOT, VmError
from .kernel import Kernel

MIB = 1 << 20
# Debian 12 has QEMU's, later systems the one that replaced it; both take the options used here.
_VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd")

# erms: "rep movsb" is emulated byte by byte; without the flag neither the kernel nor glibc uses it for
#   large copies, which become 5 times as fast. la57: a fifth level of page tables to walk for nothing.
_TCG = ("-accel", "tcg,thread=multi", "-cpu", "max,erms=off,la57=off")
_KVM = ("-accel", "kvm", "-cpu", "host")

_KERNEL_ARGUMENTS = (
    "console=ttyS0",
    "loglevel=7",
    "printk.devkmsg=on",
    # A panic, and an oops too, ends QEMU (-no-reboot); what comes after an oops proves nothing.
    "panic=-1",
    "oops=panic",
    # These cost time under emulation and protect nothing here.
    "mitigations=off",
    "init_on_alloc=0",
    # The TSC is QEMU's own, and measuring it against a busy host only fails.
    "tsc=reliable",
    "no_timer_check",
    # Off by default in Debian's kernels.
    "psi=1",
    # On a busy host a virtual processor may not run for seconds. These are not the guest's deadlocks.
    "rcupdate.rcu_cpu_stall_timeout=120",
    "watchdog_thresh=60",
)


@dataclass(frozen=True, slots=True)
class Shape:
    """The machine as asked for."""

    cpus: int
    memory: int  #: bytes
    nvme: tuple[int, ...]  #: bytes of each device
    kvm: bool = False
    nodes: int = 1  #: NUMA nodes, of which each has as much of the memory, and CPUs in turn


@dataclass(frozen=True, slots=True)
class Machine:
    process: subprocess.Popen[bytes]
    console: int  #: read ends of pipes; who gets the Machine closes them
    out: int
    err: int
    log: Path  #: what QEMU itself had to say


def find_program(names: tuple[str, ...], package: str) -> str:
    for name in names:
        if found := shutil.which(name):
            return found
    raise VmError(f"{names[0]} is not installed (Debian's package {package}); tools/setup vm installs it")


def start(shape: Shape, kernel: Kernel, initramfs: bytes, directory: Path, stack: ExitStack) -> Machine:
    """Starts it. All that it leaves in `directory` and its processes end with `stack`."""
    qemu = find_program(("qemu-system-x86_64",), "qemu-system-x86")
    log = directory / "qemu.log"
    output = stack.enter_context(log.open("wb"))
    (directory / "initramfs").write_bytes(initramfs)
    command = [qemu, "-nodefaults", "-display", "none", "-no-reboot", "-name", "greenboost-vm"]
    command += _KVM if shape.kvm else _TCG
    size = shape.memory // shape.nodes // MIB
    command += [
        "-smp",
        f"{shape.cpus},sockets={shape.cpus}",
        "-m",
        f"{size * shape.nodes}M",
        "-machine",
        "q35",
    ]
    for node in range(shape.nodes):
        # Shared, since virtiofsd reads and writes the guest's memory.
        command += ["-object", f"memory-backend-memfd,id=memory{node},size={size}M,share=on"]
        command += ["-numa", f"node,nodeid={node},memdev=memory{node}"]
    for cpu in range(shape.cpus):
        command += ["-numa", f"cpu,node-id={cpu % shape.nodes},socket-id={cpu}"]
    command += ["-kernel", str(kernel.image), "-initrd", str(directory / "initramfs")]
    command += ["-append", " ".join(_KERNEL_ARGUMENTS)]
    # cache: the root's files do not change under a run; in the checkout, either side may write.
    for tag, path, cache in (("root", "/", "always"), ("repository", str(ROOT), "auto")):
        socket = _serve_files(tag, path, cache, directory, output, stack)
        command += ["-chardev", f"socket,id={tag},path={socket}"]
        command += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag},queue-size=1024"]
    for number, size in enumerate(shape.nvme):
        image = directory / f"nvme{number}"
        with open(image, "wb") as file:
            file.truncate(size)
        # unsafe: flushes are not passed on, since nobody wants the content once the guest has ended.
        command += ["-drive", f"file={image},if=none,id=tier{number},format=raw,cache=unsafe,discard=unmap"]
        command += ["-device", f"nvme,drive=tier{number},serial=tier{number}"]
    pipes = _Pipes(stack)
    command += ["-device", "isa-serial,chardev=console", *pipes.chardev("console")]
    command += ["-device", "virtio-serial-pci"]
    for name in ("out", "err"):
        command += ["-device", f"virtserialport,name={name},chardev={name}", *pipes.chardev(name)]
    process = _spawn(command, output, stack, pipes.theirs.values())
    pipes.close_theirs()
    ours = pipes.ours
    return Machine(process, ours["console"], ours["out"], ours["err"], log)


class _Pipes:
    """Pipes out of QEMU, handed over as descriptor sets.

    Not its standard output: QEMU makes descriptors non-blocking, for everybody who shares them.
    """

    def __init__(self, stack: ExitStack) -> None:
        self.ours: dict[str, int] = {}
        self.theirs: dict[str, int] = {}
        self._stack = stack

    def chardev(self, name: str) -> list[str]:
        self.ours[name], theirs = os.pipe()
        self.theirs[name] = theirs
        self._stack.callback(os.close, self.ours[name])
        return [
            *("-add-fd", f"fd={theirs},set={theirs}"),
            *("-chardev", f"file,id={name},path=/dev/fdset/{theirs},append=on"),
        ]

    def close_theirs(self) -> None:
        for fd in self.theirs.values():
            os.close(fd)
        self.theirs.clear()


def _serve_files(
    tag: str, path: str, cache: str, directory: Path, output: IO[bytes], stack: ExitStack
) -> Path:
    if os.geteuid() != 0:
        raise VmError("tools/vm must be run by root: it gives the guest's root this system's files")
    program = find_program(_VIRTIOFSD, "virtiofsd, or qemu-system-common in Debian 12")
    socket = directory / f"{tag}.sock"
    options = ["-o", f"source={path}", "-o", f"cache={cache}", "-o", "sandbox=chroot"]
    process = _spawn([program, f"--socket-path={socket}", *options], output, stack)
    while not socket.exists():
        # Woken by its end only; the file's appearance has to be looked for.
        try:
            process.wait(0.01)
        except subprocess.TimeoutExpired:
            continue
        raise VmError(f"virtiofsd ended at once:\n{Path(output.name).read_text(errors='replace')}")
    return socket


def _spawn(
    command: list[str], output: IO[bytes], stack: ExitStack, keep: Collection[int] = ()
) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        # With setpriv they end even if tools/vm is killed with SIGKILL.
        ["setpriv", "--pdeathsig", "KILL", *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=tuple(keep),
        start_new_session=True,  # Ctrl-C is for tools/vm, which then ends them in order
    )
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    # Killed, not asked: nothing of theirs is kept.
    process.kill()
    process.wait()

# SPDX-License-Identifier: GPL-2.0-or-later
"""The command tools/vm."""

from __future__ import annotations

import argparse
import fcntl
import os
import secrets
import selectors
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from . import BUILD, ROOT, VmError, initramfs, kernel, machine, module, watch

TIMED_OUT = 124
FAILED = 125
"""As timeout(1) has them: apart from the statuses that commands use."""

_STARTS = 3
"""At most; see Console.emulator_failed_at_start()."""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "OPENBLAS_NUM_THREADS")

_EXAMPLE = """\
example:
  tools/vm --nvme 1GiB --nvme 1GiB -- sh -c 'modprobe dm-flakey && lsblk && dmsetup targets'

The guest sees this system's files. Only what it writes into the checkout stays; the rest, /tmp
included, is in its memory. The first --nvme is /dev/tier0, the second /dev/tier1. modprobe works.
The environment is PATH, HOME, LANG, TZ, GREENBOOST_VM (the kernel's version) and GREENBOOST_MODULES
(what --module built, in its order, with colons in between); use env for more.

exit status: the command's; 124 when --timeout is over; 125 when the machine did not start, the guest's
kernel complained (panic, oops, BUG, WARNING; its log is printed) or went away before the command ended.
"""


def _size(text: str) -> int:
    stripped = text.removesuffix("B").removesuffix("i")
    number, unit = (stripped[:-1], stripped[-1]) if stripped[-1:].isalpha() else (stripped, "")
    if not number.isdecimal() or unit.upper() not in _UNITS or int(number) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it as 512MiB or 2GiB")
    return int(number) * _UNITS[unit.upper()]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/vm",
        description="Runs a command in a virtual machine: a stock kernel, this system's files, NVMe devices.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--kernel",
        default="6.12",
        metavar="VERSION",
        help=f"{' or '.join(kernel.SERIES)}, a full version, or a kernel package FILE.deb (default: 6.12)",
    )
    add("--cpus", type=_positive, default=2, metavar="N", help="default: 2")
    add("--memory", type=_size, default=2 << 30, metavar="SIZE", help="default: 2GiB")
    add("--nodes", type=_positive, default=1, metavar="N", help="NUMA nodes that share both (default: 1)")
    add("--nvme", type=_size, action="append", default=[], metavar="SIZE", help="an NVMe device; repeatable")
    add(
        "--module",
        type=Path,
        nargs="?",
        const=ROOT / "kmod",
        action="append",
        default=[],
        metavar="DIRECTORY",
        help="build the module in there for the guest's kernel and load it first; default: kmod; repeatable",
    )
    add("--timeout", type=_positive, default=600, metavar="SECONDS", help="from the start; default: 600")
    add("--console", type=Path, metavar="FILE", help="write the kernel's log there")
    add("--kvm", action="store_true", help="use KVM: faster, and not how the tests are run")
    add("command", nargs="+", metavar="COMMAND", help="and its arguments, behind --")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        with ExitStack() as stack:
            # First, so that nothing is started that a signal would leave behind.
            stack.enter_context(_signals_as_exit())
            return _run(options, stack)
    except VmError as error:
        print(f"tools/vm: {error}", file=sys.stderr)
        return FAILED


@contextmanager
def _signals_as_exit() -> Iterator[None]:
    caught = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def leave(number: int, _: object) -> None:
        for one in caught:
            signal.signal(one, signal.SIG_IGN)  # the way out must not be cut short by another
        raise SystemExit(128 + number)

    for one in caught:
        signal.signal(one, leave)
    yield


@contextmanager
def _run_directory() -> Iterator[Path]:
    """A directory that is gone afterwards, if need be with the help of the next run."""
    for old in BUILD.glob("run-*"):
        with open(old / "lock", "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # somebody's at work
            shutil.rmtree(old, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(dir=BUILD, prefix="run-") as name,
        open(Path(name) / "lock", "w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(name)


def _settings(options: argparse.Namespace, chosen: kernel.Kernel, modules: list[Path], mark: str) -> str:
    """What init.sh and guest.sh are told, as shell text."""
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {"HOME": "/root", "GREENBOOST_VM": chosen.version}
    environment["GREENBOOST_MODULES"] = ":".join(map(str, modules))
    # There is no udev, and dmsetup only thinks so where udev never was: it is to make its own nodes.
    environment["DM_DISABLE_UDEV"] = "1"
    run = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *options.command]
    return (
        f"repository={shlex.quote(str(ROOT))}\n"
        f"modules={shlex.quote(str(chosen.directory / 'lib' / 'modules'))}\n"
        f"nvme={len(options.nvme)}\n"
        f"directory={shlex.quote(os.getcwd())}\n"
        f"mark={shlex.quote(mark)}\n"
        f"load={shlex.quote(chr(10).join(map(str, modules)))}\n"
        f"command() {{ {shlex.join(run)}; }}\n"
    )


def _run(options: argparse.Namespace, stack: ExitStack) -> int:
    deadline = time.monotonic() + options.timeout
    chosen = kernel.find(options.kernel)
    modules = [module.build(directory, chosen) for directory in options.module]
    directory = stack.enter_context(_run_directory())
    busybox = Path(machine.find_program(("busybox",), "busybox-static"))
    mark = f"\x02{secrets.token_hex(16)}"
    contents = initramfs.build(chosen, busybox, _settings(options, chosen, modules, mark))
    status = FAILED
    for number in range(_STARTS):
        place = directory / str(number)
        place.mkdir()
        status, again = _start(options, chosen, contents, place, mark, deadline)
        if not again:
            break
        print("tools/vm: the emulator failed before anything of ours ran", file=sys.stderr)
    return status


def _start(
    options: argparse.Namespace,
    chosen: kernel.Kernel,
    contents: bytes,
    directory: Path,
    mark: str,
    deadline: float,
) -> tuple[int, bool]:
    """The status to end with, and whether it is worth another start."""
    shape = machine.Shape(options.cpus, options.memory, tuple(options.nvme), options.kvm, options.nodes)
    console = watch.Console()
    with ExitStack() as stack:
        running = machine.start(shape, chosen, contents, directory, stack)
        streams = {running.out: (watch.Stream(mark), 1), running.err: (watch.Stream(mark), 2)}
        try:
            timed_out = not _follow(running, streams, console, deadline)
        finally:
            if options.console:
                options.console.write_text("".join(f"{line}\n" for line in console.lines()))
        status = _verdict(options, running, [stream for stream, _ in streams.values()], console, timed_out)
    return status, console.emulator_failed_at_start()


def _follow(
    running: machine.Machine,
    streams: dict[int, tuple[watch.Stream, int]],
    console: watch.Console,
    deadline: float,
) -> bool:
    """Passes on what comes until there is no more; False when the time is over before."""
    with selectors.DefaultSelector() as selector:
        for fd in (running.console, *streams):
            selector.register(fd, selectors.EVENT_READ)
        # Until QEMU has closed its ends: what the kernel said last may still be in the pipe.
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            for key, _ in selector.select(left):
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fd)
                elif key.fd == running.console:
                    console.feed(data)
                else:
                    stream, target = streams[key.fd]
                    _write(target, stream.feed(data))
            if all(stream.status is not None for stream, _ in streams.values()):
                running.process.kill()
    for stream, target in streams.values():
        _write(target, stream.rest())
    return True


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _verdict(
    options: argparse.Namespace,
    running: machine.Machine,
    streams: list[watch.Stream],
    console: watch.Console,
    timed_out: bool,
) -> int:
    status = streams[0].status
    faults = console.faults()
    if faults:
        said = f"the guest's kernel complained: {faults[0].strip()}"
    elif timed_out:
        said = f"the command had not ended after {options.timeout} s"
    elif any(stream.status is None for stream in streams):
        ended = running.process.wait(10)  # it has closed its ends
        said = f"the machine went away before the command ended: QEMU's status is {ended}\n"
        said += running.log.read_text(errors="replace")
    else:
        assert status is not None
        if status == 128 + signal.SIGKILL:
            for line in console.killed():
                print(f"tools/vm: {line}", file=sys.stderr)
        return status
    print(f"\ntools/vm: the kernel's log ({options.kernel}):", *console.excerpt(), sep="\n", file=sys.stderr)
    print(f"tools/vm: {said}", file=sys.stderr)
    if status is not None:
        print(f"tools/vm: the command itself ended with status {status}", file=sys.stderr)
    return TIMED_OUT if timed_out and not faults else FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

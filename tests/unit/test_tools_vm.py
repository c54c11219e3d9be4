# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of tools/vm that need no machine."""

from __future__ import annotations

import argparse
import lzma
import os
import secrets
import struct
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from vmhost import __main__ as command
from vmhost import bzimage, initramfs, kernel, machine
from vmhost.kernel import Kernel
from vmhost.machine import Machine
from vmhost.watch import Console, Stream

MARK = "\x02mark"


def passed_on(stream: Stream, *pieces: bytes) -> bytes:
    return b"".join(stream.feed(piece) for piece in pieces)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_stream_ends_at_the_mark_however_it_is_cut(size: int) -> None:
    whole = b"a\x02b\x02mar\x02mark x" + MARK.encode() + b" 17\nlate"
    stream = Stream(MARK)
    out = passed_on(stream, *(whole[at : at + size] for at in range(0, len(whole), size)))
    assert out == b"a\x02b\x02mar\x02mark x"
    assert stream.status == 17


def test_stream_holds_back_only_what_may_be_a_mark() -> None:
    stream = Stream(MARK)
    assert stream.feed(b"line\n") == b"line\n"
    assert stream.feed(b"more\x02ma") == b"more"
    assert stream.status is None
    assert stream.rest() == b"\x02ma"
    assert stream.rest() == b""


@pytest.mark.parametrize(
    "line",
    [
        "[    1.2] Kernel panic - not syncing: sysrq triggered crash",
        "[    1.2] WARNING: CPU: 1 PID: 7 at mm/page_alloc.c:1 f+0x1/0x2",
        "[    1.2] WARNING: possible circular locking dependency detected",
        "[    1.2] BUG: KASAN: slab-use-after-free in f+0x1/0x2 [greenboost]",
        "[    1.2] BUG: kernel NULL pointer dereference, address: 0000000000000000",
        "[    1.2] Oops: 0002 [#1] PREEMPT SMP",
        "[    1.2] INFO: task cat:1 blocked for more than 120 seconds.",
        "[    1.2] kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
    ],
)
def test_faults(line: str) -> None:
    console = Console()
    console.feed(b"[    1.1] fine\r\n" + line.encode()[:11])
    assert console.faults() == []
    console.feed(line.encode()[11:] + b"\r\n[    1.3] fine\r\n")
    assert console.faults() == [line]
    assert console.excerpt() == ["[    1.1] fine", line, "[    1.3] fine"]


@pytest.mark.parametrize(
    "line",
    [
        "Buffer I/O error on dev dm-0, logical block 0, async page read",
        "blk_update_request: I/O error, dev nullb0, sector 2048 op 0x0:(READ)",
        "Out of memory: Killed process 12 (python)",
    ],
)
def test_what_tests_provoke_is_no_fault(line: str) -> None:
    console = Console()
    console.feed(f"{line}\n".encode())
    assert console.faults() == []


INT3 = "[    2.4] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI"
UP = "[    3.1] vm: the guest is up"


@pytest.mark.parametrize(
    ("lines", "emulator"),
    [
        ([INT3], True),
        ([], False),
        ([UP], False),
        ([UP, INT3], False),
        (["[    2.4] Oops: 0002 [#1] PREEMPT SMP", INT3], False),
    ],
)
def test_whose_fault(lines: list[str], emulator: bool) -> None:
    console = Console()
    console.feed("".join(f"{line}\n" for line in lines).encode())
    assert console.emulator_failed_at_start() is emulator


def test_who_was_killed_for_want_of_memory_is_said() -> None:
    line = "[  513.8] Out of memory: Killed process 316 (python) total-vm:4042296kB, anon-rss:1883748kB"
    console = Console()
    console.feed(f"[  513.7] python invoked oom-killer: order=0\r\n{line}\r\n[  513.9] fine\r\n".encode())
    assert console.killed() == [line]
    assert console.faults() == []


@pytest.mark.parametrize(("failures", "status", "starts"), [(0, 7, 1), (2, 7, 3), (9, 125, 3)])
def test_another_start(
    failures: int,
    status: int,
    starts: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    directories: list[Path] = []

    def start(shape: object, chosen: object, contents: bytes, directory: Path, stack: ExitStack) -> Machine:
        directories.append(directory)
        (directory / "qemu.log").touch()
        broken = len(directories) <= failures
        ours = []
        for data in [INT3, "", ""] if broken else [UP, *["said\n\x02mark 7\n"] * 2]:
            reader, writer = os.pipe()
            os.write(writer, data.encode())
            os.close(writer)
            stack.callback(os.close, reader)
            ours.append(reader)
        process = stack.enter_context(subprocess.Popen(["true"]))
        return Machine(process, ours[0], ours[1], ours[2], directory / "qemu.log")

    monkeypatch.setattr(command, "BUILD", tmp_path)
    monkeypatch.setattr(kernel, "find", lambda name: Kernel(name, tmp_path))
    monkeypatch.setattr(secrets, "token_hex", lambda count: "mark")
    monkeypatch.setattr(machine, "find_program", lambda *arguments: "busybox")
    monkeypatch.setattr(initramfs, "build", lambda *arguments: b"")
    monkeypatch.setattr(machine, "start", start)
    assert command.main(["--", "true"]) == status
    assert len(set(directories)) == len(directories) == starts
    said = capfd.readouterr()
    assert said.out == ("said\n" if status == 7 else "")
    assert said.err.count("emulator failed") == min(failures, starts)


@pytest.mark.parametrize(
    ("text", "size"), [("512MiB", 512 << 20), ("2G", 2 << 30), ("1TiB", 1 << 40), ("4096", 4096)]
)
def test_sizes(text: str, size: int) -> None:
    assert command.parse(["--memory", text, "--", "true"]).memory == size


@pytest.mark.parametrize("text", ["", "0", "MiB", "1.5GiB", "-1G", "1Q"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no size"):
        command._size(text)


def test_options_behind_the_command_are_the_commands() -> None:
    assert command.parse(["--cpus", "1", "--", "ls", "--cpus", "--help"]).command == [
        "ls",
        "--cpus",
        "--help",
    ]


def bzimage_of(payload: bytes) -> bytes:
    image = bytearray(2 * 512)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 16, len(payload))
    return bytes(image) + bytes(16) + payload + b"behind"


def test_bzimage() -> None:
    elf = b"\x7fELF" + bytes(1000)
    size = struct.pack("<I", len(elf))
    assert bzimage.unpack(bzimage_of(lzma.compress(elf) + size)) == elf
    assert bzimage.unpack(bzimage_of(lzma.compress(b"no ELF") + size)) is None
    assert bzimage.unpack(bzimage_of(b"unknown")) is None
    assert bzimage.unpack(b"no kernel") is None


def test_modules_are_in_the_initramfs_unpacked_behind_what_they_need(tmp_path: Path) -> None:
    kernel = Kernel("1.2", tmp_path)
    kernel.modules.mkdir(parents=True)
    for name in ("nvme.ko.xz", "nvme-core.ko.xz", "t10.ko.xz", "other.ko.xz"):
        (kernel.modules / name).write_bytes(lzma.compress(f"content of {name}".encode()))
    (kernel.modules / "modules.dep").write_text(
        "nvme.ko.xz: nvme-core.ko.xz t10.ko.xz\nnvme-core.ko.xz: t10.ko.xz\nt10.ko.xz:\nother.ko.xz:\n"
    )
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"odd")
    archive = initramfs.build(kernel, busybox, "nvme=1\n")
    assert archive.index(b"content of t10") < archive.index(b"content of nvme-core")
    assert b"00-t10.ko\n01-nvme_core.ko\n02-nvme.ko poll_queues=1\n" in archive
    assert b"content of other" not in archive
    try:
        listing = subprocess.run(["busybox", "cpio", "-t"], input=archive, capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("busybox is not installed: that others can read the archive is NOT tested")
    assert listing.stdout.split()[-1] == b"modules/order"

# SPDX-License-Identifier: GPL-2.0-or-later
"""What applications see of a whole daemon whose spill paths are devices that fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel

from tests.unit.daemon_harness import CHUNK, MIB, running, status
from tests.unit.fake_shim import FakeShim, connect_shim
from tests.vm.guest.harness import SECTOR, linear, mapped, null_blk, pulled_out, sectors
from tierd.cli.main import main
from tierd.config import Config
from tierd.wire import Disconnected, RemoteError

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("no_leaked_fds")]


class Application:
    """Keeps chunks in T3 and knows what they must be; slot 0 is for what leaves, 1 for what comes."""

    def __init__(self, shim: FakeShim) -> None:
        self.shim = shim
        self.content: dict[int, bytes] = {}  # of a chunk: what is repeated

    async def begin(self, chunks: int) -> None:
        await self.shim.alloc(0, chunks)
        self.arena = await self.shim.arena()

    async def store(self, *chunks: int) -> None:
        for chunk in chunks:
            content = os.urandom(4096)
            self.arena.memory[:CHUNK] = content * (CHUNK // 4096)
            await self.shim.call("spill", chunk=chunk, arena=self.arena.id, slot=0)
            self.content[chunk] = content

    async def load(self, *chunks: int) -> None:
        """Raises RemoteError; T3 no longer has them afterwards."""
        for chunk in chunks:
            self.arena.memory[CHUNK : 2 * CHUNK] = bytes(CHUNK)
            await self.shim.call("fetch", chunk=chunk, arena=self.arena.id, slot=1)
            assert self.arena.read(1) == self.content.pop(chunk) * (CHUNK // 4096)

    async def fails(self, chunk: int) -> None:
        with pytest.raises(RemoteError) as caught:
            await self.load(chunk)
        assert caught.value.name == "EIO"


@asynccontextmanager
async def application(conf: Config, chunks: int) -> AsyncIterator[Application]:
    async with connect_shim(conf.socket) as shim:
        program = Application(shim)
        await program.begin(chunks)
        yield program


@pytest.fixture
def disks() -> Iterator[tuple[str, str]]:
    """Two devices in memory, of 16 extents each."""
    with null_blk(33, "disk0") as (first, _), null_blk(33, "disk1") as (second, _):
        yield first, second


async def spill(conf: Config, *arguments: str) -> None:
    """greenboost spill ARGUMENTS."""
    command = ["spill", *arguments, "--socket", str(conf.socket)]
    assert await trio.to_thread.run_sync(main, command) == 0


async def paths(conf: Config) -> dict[str, dict[str, Any]]:
    """The spill paths by name."""
    return {path["path"]: path for path in (await status(conf))["spill"]}


async def until(conf: Config, condition: Callable[[dict[str, Any]], bool]) -> None:
    """Waits for a status of the daemon."""
    with trio.fail_after(300):
        while not condition(await status(conf)):
            pass


async def until_exists(path: Path) -> None:
    with trio.fail_after(300):
        while not os.path.lexists(path):  # noqa: ASYNC110, ASYNC240 - somebody else makes it
            await trio.sleep(0.05)


def used(snapshot: dict[str, Any]) -> list[int]:
    return [path["used_bytes"] // CHUNK for path in snapshot["spill"]]


def states(snapshot: dict[str, Any]) -> list[str]:
    return [path["state"] for path in snapshot["spill"]]


async def test_a_chunk_that_cannot_be_read_is_its_owners_error(
    tmp_path: Path, disks: tuple[str, str]
) -> None:
    with linear(disks[0]) as device:
        async with running(tmp_path, extents=0) as conf:
            await spill(conf, "add", device.path)
            async with application(conf, 4) as one, application(conf, 4) as other:
                await one.store(0, 1, 2, 3)
                await other.store(0, 1, 2, 3)
                # Extents are given out in order: the second is `one`'s chunk 1.
                begin, end, whole = (
                    (MIB + CHUNK) // SECTOR,
                    (MIB + 2 * CHUNK) // SECTOR,
                    sectors(disks[0]),
                )
                device.load(
                    f"0 {begin} linear {disks[0]} 0",
                    f"{begin} {end - begin} error",
                    f"{end} {whole - end} linear {disks[0]} {end}",
                )
                await one.fails(1)
                await one.load(0, 2, 3)
                await other.load(0, 1, 2, 3)
                [path] = (await paths(conf)).values()
                assert (path["state"], path["errors"], path["retired_bytes"]) == ("active", 1, CHUNK)
                await one.store(0)
                await one.load(0)


async def test_a_session_that_dies_while_a_device_stalls(tmp_path: Path, disks: tuple[str, str]) -> None:
    with linear(disks[0]) as device:
        async with running(tmp_path, extents=0) as conf:
            await spill(conf, "add", device.path, "--deadline", "0.4")
            async with application(conf, 4) as other:
                async with application(conf, 8) as one, trio.open_nursery() as nursery:
                    await one.store(0, 1, 2, 3)
                    await spill(conf, "add", disks[1])
                    assert (await status(conf))["arenas"] == 2
                    device.suspend()

                    async def load() -> None:
                        with pytest.raises((Disconnected, trio.ClosedResourceError)):
                            await one.load(2)

                    nursery.start_soon(load)
                    await until(conf, lambda snapshot: states(snapshot) == ["stalled", "active"])
                    await other.store(0, 1, 2)
                    assert used(await status(conf)) == [4, 3]
                    one.shim.close()
                await until(conf, lambda snapshot: len(snapshot["sessions"]) == 1)
                now = await status(conf)
                # All but what the device still reads, into pages that are nobody's any more.
                assert (now["arenas"], used(now)) == (1, [1, 3])
                await other.load(0, 1, 2)
                async with application(conf, 4) as third:
                    await third.store(0, 1)
                    await third.load(1, 0)
                device.resume()
                await until(conf, lambda s: states(s) == ["active", "active"] and used(s) == [0, 0])
                await other.store(0, 1, 2, 3)
                assert all(used(await status(conf)))
                await other.load(0, 1, 2, 3)


async def test_a_device_that_is_pulled_out(tmp_path: Path, disks: tuple[str, str]) -> None:
    with pulled_out("tier2") as pull_out:
        async with running(tmp_path, extents=0) as conf:
            await spill(conf, "add", "/dev/tier2")
            async with application(conf, 4) as other:
                async with application(conf, 4) as one:
                    await one.store(0, 1, 2, 3)
                    await spill(conf, "add", disks[1])
                    pull_out()
                    for chunk in range(4):
                        await one.fails(chunk)
                    assert states(await status(conf)) == ["failed", "active"]
                    await other.store(0, 1, 2, 3)
                    assert used(await status(conf))[1] == 4
                    await other.load(0, 1, 2, 3)
                await spill(conf, "remove", "/dev/tier2")  # once nobody has anything on it
                assert list(await paths(conf)) == [disks[1]]


async def test_a_full_t3_refuses_memory_and_loses_none(tmp_path: Path, disks: tuple[str, str]) -> None:
    with linear(disks[0]) as device:
        async with running(tmp_path, extents=0, ram="8MiB") as conf:
            await spill(conf, "add", device.path)
            async with application(conf, 14) as one:
                await one.store(*range(14))
                with pytest.raises(RemoteError) as caught:
                    await one.shim.alloc(14, 40)
                assert caught.value.name == "ENOMEM"
                # A part of what was promised fails now: no more is promised, and what is there stays.
                end = (MIB + 14 * CHUNK) // SECTOR
                device.load(f"0 {end} linear {disks[0]} 0", f"{end} {sectors(disks[0]) - end} error")
                await one.load(*range(14))


async def test_paths_come_and_go_under_an_application(tmp_path: Path, disks: tuple[str, str]) -> None:
    with linear(disks[0]) as first, mapped("linear", disks[1], f"{disks[1]} 0", name="second") as second:
        async with running(tmp_path, extents=0) as conf:
            await spill(conf, "add", first.path)
            async with application(conf, 10) as one:
                over = False
                rounds = 0

                async def use() -> None:
                    nonlocal rounds
                    while not over:
                        rounds += 1
                        for chunk in range(10):
                            if chunk in one.content:
                                await one.load(chunk)
                            await one.store(chunk)

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(use)
                    await until(conf, lambda snapshot: used(snapshot) != [0])
                    await spill(conf, "add", second.path)
                    second.reload("delay", disks[1], f"{disks[1]} 0 5")
                    await spill(conf, "drain", first.path)
                    await until(conf, lambda snapshot: used(snapshot)[0] == 0)
                    await spill(conf, "remove", first.path)
                    assert list(await paths(conf)) == [second.path]
                    await spill(conf, "add", first.path)
                    first.reload("flakey", disks[0], f"{disks[0]} 0 0 1000 1 error_writes")
                    await until(conf, lambda snapshot: "failed" in states(snapshot))
                    await spill(conf, "remove", first.path)
                    first.reload("linear", disks[0], f"{disks[0]} 0")
                    await spill(conf, "add", first.path)
                    await spill(conf, "remove", second.path)
                    assert states(await status(conf)) == ["active"]
                    over = True
                assert rounds
                await one.load(*list(one.content))


async def test_the_process_ends_while_a_device_stalls(tmp_path: Path, disks: tuple[str, str]) -> None:
    with linear(disks[0]) as device:
        settings = tmp_path / "config.toml"
        settings.write_text(
            f"""
            [tierd]
            socket = "{tmp_path}/sock"
            chunk = "2MiB"
            [ram]
            limit = "16MiB"
            arena = "4MiB"
            [[spill]]
            path = "{device.path}"
            deadline = 0.3
            """
        )
        command = [sys.executable, "-m", "tierd.cli", "daemon", "--config", str(settings)]
        with subprocess.Popen(command) as process:  # noqa: ASYNC220 - it takes no time
            try:
                await until_exists(tmp_path / "sock")
                async with connect_shim(tmp_path / "sock") as shim, trio.open_nursery() as nursery:
                    one = Application(shim)
                    await one.begin(4)
                    await one.store(0, 1, 2, 3)
                    device.suspend()

                    async def load() -> None:
                        with pytest.raises(Disconnected):
                            await one.load(2)

                    nursery.start_soon(load)
                    await trio.lowlevel.checkpoint()
                    process.send_signal(signal.SIGTERM)
                    assert await trio.to_thread.run_sync(process.wait, 30) == 0
            finally:
                device.resume()
                process.kill()

# SPDX-License-Identifier: GPL-2.0-or-later
"""A daemon that dies under its applications, and the next one: what is whose, byte for byte."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio
import trio.testing

from tierd import reattach
from tierd.arena import Arena, ArenaError, ArenaPool
from tierd.ledger import process_start
from tierd.wire import RemoteError

from .daemon_harness import CHUNK, MIB, status, wait_until
from .fake_shim import new_state
from .reattach_harness import (
    ROOT,
    Application,
    begin,
    content,
    daemon,
    doomed,
    fetched,
    put,
    running,
    socket_of,
)

pytestmark = pytest.mark.usefixtures("no_leaked_fds")


async def test_it_goes_on_with_the_next_daemon(tmp_path: Path, application: Application) -> None:
    await begin(application, tmp_path)
    key = application.key
    async with running(tmp_path) as conf:
        before = await status(conf)
        assert before["spill"][0]["used_bytes"] == 2 * CHUNK
        async with application.again(conf.socket) as shim:
            assert shim.welcome["session"] == 1
            assert application.key == key
            (arena,) = shim.arenas.values()
            assert arena.read(0) == content(3)
            assert arena.read(1) == content(4)
            (session,) = (await status(conf))["sessions"]
            assert session["committed_chunks"] == 7
            assert await fetched(shim, 0) == content(1)
            assert await fetched(shim, 1) == content(2)
            assert await fetched(shim, 2) == b"\7" * CHUNK
            put(arena, 0, 9)
            await shim.call("spill", chunk=0, arena=arena.id, slot=0)
            assert await fetched(shim, 0) == content(9)
            with pytest.raises(RemoteError, match="allocated already"):
                await shim.alloc(4, 1)
            # No two arenas have one id.
            assert (await shim.arena()).id not in application.arenas
        after = await wait_until(conf, sessions=0)
        assert after["spill"][0]["used_bytes"] == 0
        assert after["arenas"] == 0


async def test_a_trim_that_had_no_answer_is_asked_again(tmp_path: Path, application: Application) -> None:
    await begin(application, tmp_path)
    application.allocations[0] = (0, 3)
    async with running(tmp_path) as conf, application.again(conf.socket) as shim:
        for _ in range(2):
            (session,) = (await status(conf))["sessions"]
            assert session["committed_chunks"] == 5
            await shim.call("trim", first=0, chunks=3)
        assert await fetched(shim, 2) == b"\7" * CHUNK
        await shim.alloc(3, 1)


async def test_what_it_does_not_name_is_given_back(tmp_path: Path, application: Application) -> None:
    await begin(application, tmp_path)
    application.extents = {1}
    application.allocations = [(0, 5)]
    os.close(application.arenas.popitem()[1])
    async with running(tmp_path) as conf, application.again(conf.socket) as shim:
        snapshot = await status(conf)
        assert snapshot["spill"][0]["used_bytes"] == CHUNK
        assert snapshot["sessions"][0]["committed_chunks"] == 5
        assert snapshot["arenas"] == 0
        arena = await shim.arena()
        await shim.call("spill", chunk=0, arena=arena.id, slot=0)  # which T3 has no more
        with pytest.raises(RemoteError, match="no allocation"):
            await shim.call("free", first=7)
        await shim.call("free", first=0)


async def test_what_t3_does_not_have_is_lost_for_that_chunk_alone(
    tmp_path: Path, application: Application
) -> None:
    await begin(application, tmp_path)
    application.extents |= {3}
    async with running(tmp_path) as conf, application.again(conf.socket, lost=frozenset({3})) as shim:
        with pytest.raises(RemoteError) as refused:
            await fetched(shim, 3)
        assert refused.value.name == "ENOENT"
        assert await fetched(shim, 0) == content(1)


async def test_what_was_overwritten_meanwhile_is_an_error_of_its_owner(
    tmp_path: Path, application: Application
) -> None:
    await begin(application, tmp_path)
    spill = os.open(tmp_path / "spill", os.O_WRONLY)
    os.pwrite(spill, b"somebody else's", MIB)
    os.close(spill)
    async with running(tmp_path) as conf, application.again(conf.socket) as shim:
        with pytest.raises(RemoteError) as refused:
            await fetched(shim, 0)
        assert refused.value.name == "EIO"
        assert await fetched(shim, 1) == content(2)


async def test_newcomers_are_not_given_what_absent_ones_have(
    tmp_path: Path, application: Application
) -> None:
    await begin(application, tmp_path)
    other = Application(new_state())
    async with running(tmp_path) as conf, other.connect(conf.socket, key="") as newcomer:
        assert newcomer.welcome["session"] == 2
        arena = await newcomer.arena()
        with pytest.raises(RemoteError, match="the tiers have room for"):
            await newcomer.alloc(0, 10)
        await newcomer.alloc(0, 3)
        for chunk in range(3):
            put(arena, 0, 100 + chunk)
            await newcomer.call("spill", chunk=chunk, arena=arena.id, slot=0)
        async with application.again(conf.socket) as shim:
            for chunk in range(2):
                assert await fetched(shim, chunk) == content(chunk + 1)
            for chunk in range(3):
                assert await fetched(newcomer, chunk) == content(100 + chunk)
    os.close(other.state)


@pytest.mark.parametrize("key", ["0" * 32, "é"])
async def test_a_key_that_nobody_has_is_refused(tmp_path: Path, application: Application, key: str) -> None:
    await begin(application, tmp_path)
    async with running(tmp_path) as conf:
        with pytest.RaisesGroup(pytest.RaisesExc(RemoteError, match="no such session of yours")):
            async with application.connect(conf.socket, key=key):
                pass
        async with application.again(conf.socket) as shim:
            assert await fetched(shim, 0) == content(1)


STRANGER = """
    import sys, trio
    from pathlib import Path
    from tests.unit.fake_shim import new_state
    from tests.unit.reattach_harness import Application

    async def main():
        async with Application(new_state()).connect(Path(sys.argv[1]), key=sys.argv[2]):
            pass

    trio.run(main)
"""


async def test_a_stranger_who_knows_the_key_is_refused(tmp_path: Path, application: Application) -> None:
    await begin(application, tmp_path)
    async with running(tmp_path) as conf:
        stranger = await trio.run_process(
            [sys.executable, "-c", textwrap.dedent(STRANGER), str(conf.socket), application.key],
            cwd=ROOT,
            capture_stderr=True,
            check=False,
        )
        assert b"EPERM" in stranger.stderr or b"no such session of yours" in stranger.stderr
        async with application.again(conf.socket) as shim:
            assert await fetched(shim, 0) == content(1)


def plain_file(size: int) -> int:
    return os.open("/tmp", os.O_TMPFILE | os.O_RDWR)


def unsealed(size: int) -> int:
    fd = os.memfd_create("arena", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    return fd


def too_small(size: int) -> int:
    from tierd.arena import memfd

    return memfd(1, size // 2)


@pytest.mark.parametrize("make", [plain_file, unsealed, too_small])
async def test_what_cannot_be_an_arena_ends_the_session(
    tmp_path: Path, application: Application, make: object
) -> None:
    await begin(application, tmp_path)
    async with running(tmp_path) as conf:
        async with application.connect(conf.socket) as shim:
            fd = make(4 * MIB)  # type: ignore[operator]
            with pytest.raises(RemoteError, match="cannot be adopted"):
                await shim.connection.call("adopt", {"arena": 1}, [fd])
            os.close(fd)
            await shim.ended.wait()
        assert (await wait_until(conf, sessions=0))["spill"][0]["used_bytes"] == 0


async def test_claims_beyond_what_was_admitted_end_the_session(
    tmp_path: Path, application: Application
) -> None:
    await begin(application, tmp_path)
    application.allocations.append((20, 1))
    async with running(tmp_path) as conf:
        async with application.connect(conf.socket) as shim:
            with pytest.raises(RemoteError, match="8 chunks are claimed, 7 were admitted"):
                await application.resume(shim)
            await shim.ended.wait()
        await wait_until(conf, sessions=0)


@pytest.mark.parametrize("op", ["vram", "spill"])
async def test_nothing_else_comes_before_resume(tmp_path: Path, application: Application, op: str) -> None:
    await begin(application, tmp_path)
    fields = {
        "vram": {"slots": 3, "bytes": 1},
        "spill": {"chunk": 3, "arena": 1, "slot": 0},
    }
    async with running(tmp_path) as conf, application.connect(conf.socket) as shim:
        with pytest.raises(RemoteError, match="resume has to be said before"):
            await shim.connection.call(op, fields[op])
        await shim.ended.wait()


@pytest.mark.parametrize("when", ["before", "after"])
async def test_whoever_dies_without_a_daemon_gives_everything_back(
    tmp_path: Path, application: Application, when: str
) -> None:
    with daemon(tmp_path) as process, doomed(socket_of(tmp_path)) as dying:
        process.kill()
        process.wait()
        assert dying.stdout is not None
        assert dying.stdout.readline() == "alone\n"
        if when == "before":
            dying.kill()
            dying.wait()
        async with running(tmp_path) as conf:
            if when == "after":
                assert (await status(conf))["spill"][0]["used_bytes"] == 4 * CHUNK
                dying.kill()
                while (await status(conf))["spill"][0]["used_bytes"]:
                    pass
            async with application.connect(conf.socket) as shim:
                await shim.alloc(0, 12)


async def test_who_does_not_come_back_is_given_up(
    tmp_path: Path, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reattach, "GRACE", 0)
    await begin(application, tmp_path)
    async with running(tmp_path) as conf:
        while (await status(conf))["spill"][0]["used_bytes"]:
            pass
        with pytest.RaisesGroup(pytest.RaisesExc(RemoteError, match="no such session of yours")):
            async with application.connect(conf.socket):
                pass


async def test_nobody_waits_for_an_arena_of_one_that_is_not_back(
    tmp_path: Path, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierd.tiers.RECALL_PATIENCE", math.inf)
    monkeypatch.setattr(reattach, "RECALL_PATIENCE", 0)
    with daemon(tmp_path) as process:
        async with application.connect(socket_of(tmp_path)) as shim:
            await application.alloc(shim, 0, 2)
            for _ in range(4):
                await application.arena(shim)
            process.kill()
            await shim.ended.wait()
    other = Application(new_state())
    async with running(tmp_path) as conf:
        async with other.connect(conf.socket, key="") as newcomer:
            await newcomer.alloc(0, 2)
            with pytest.raises(RemoteError, match="no arena was given back in time"):
                await newcomer.arena()
        async with application.again(conf.socket):
            pass
    os.close(other.state)


async def test_who_breaks_off_before_resume_may_try_again(tmp_path: Path, application: Application) -> None:
    await begin(application, tmp_path)
    async with running(tmp_path) as conf:
        for _ in range(2):
            async with application.connect(conf.socket) as shim:
                await application.adopt(shim)
                await application.alloc(shim, 0, 5)
                application.allocations.pop()
        snapshot = await wait_until(conf, sessions=0)
        assert snapshot["spill"][0]["used_bytes"] == 2 * CHUNK
        assert snapshot["ended"] == []
        async with application.again(conf.socket) as shim:
            assert await fetched(shim, 0) == content(1)


async def test_a_second_try_waits_for_the_first_to_end(tmp_path: Path, application: Application) -> None:
    """As seen by the daemon: the shim has closed that, and is not known to have."""
    await begin(application, tmp_path)
    waited = trio.Event()
    async with running(tmp_path) as conf:

        async def again() -> None:
            async with application.again(conf.socket) as shim:
                assert await fetched(shim, 0) == content(1)
            waited.set()

        async with trio.open_nursery() as nursery, application.connect(conf.socket):
            nursery.start_soon(again)
            await trio.testing.wait_all_tasks_blocked()
            assert not waited.is_set()
        assert waited.is_set()


async def test_who_breaks_off_and_is_not_waited_for_any_more_is_given_up(
    tmp_path: Path, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reattach, "GRACE", 0.2)
    over = trio.Event()
    real = reattach.Absentees.wait

    async def wait(self: reattach.Absentees) -> None:
        await real(self)
        over.set()

    monkeypatch.setattr(reattach.Absentees, "wait", wait)
    await begin(application, tmp_path)
    async with running(tmp_path) as conf:
        async with application.connect(conf.socket):
            await over.wait()
            assert (await status(conf))["spill"][0]["used_bytes"] == 2 * CHUNK
        while (await status(conf))["spill"][0]["used_bytes"]:
            pass


async def test_want_of_memory_is_not_the_end(
    tmp_path: Path, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(application, tmp_path)

    def adopt(self: ArenaPool, id: int, fd: int) -> Arena:
        os.close(fd)
        raise ArenaError("no memory")

    async with running(tmp_path) as conf:
        with monkeypatch.context() as patch:
            patch.setattr(ArenaPool, "adopt", adopt)
            async with application.connect(conf.socket) as shim:
                with pytest.raises(RemoteError) as refused:
                    await application.adopt(shim)
                assert refused.value.name == "ENOMEM"
                await shim.ended.wait()
        async with application.again(conf.socket) as shim:
            assert await fetched(shim, 0) == content(1)


async def test_all_sessions_of_a_process_go_on(tmp_path: Path, application: Application) -> None:
    """One a device."""
    other = Application(new_state())
    with daemon(tmp_path) as process:
        async with application.connect(socket_of(tmp_path)) as one, other.connect(socket_of(tmp_path)) as two:
            for it, shim, byte in ((application, one, 1), (other, two, 2)):
                await it.alloc(shim, 0, 3)
                arena = await it.arena(shim)
                put(arena, 0, byte)
                await shim.call("spill", chunk=0, arena=arena.id, slot=0)
                it.extents = {0}
            process.kill()
            await one.ended.wait()
            await two.ended.wait()
    async with (
        running(tmp_path) as conf,
        other.again(conf.socket) as two,
        application.again(conf.socket) as one,
    ):
        assert await fetched(one, 0) == content(1)
        assert await fetched(two, 0) == content(2)
    for fd in (other.state, *other.arenas.values()):
        os.close(fd)


def test_a_process_lives_as_long_as_one_of_its_threads() -> None:
    program = "import ctypes, sys, threading; "
    program += "threading.Thread(target=sys.stdin.read).start(); print(flush=True); "
    program += "ctypes.CDLL(None).syscall(60, 0)"  # exit(2), of the first thread alone
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        stat = Path(f"/proc/{process.pid}/stat")
        while ") Z " not in stat.read_text():
            pass
        assert process_start(process.pid) > 0
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process_start(process.pid) == 0

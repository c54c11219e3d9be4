# SPDX-License-Identifier: GPL-2.0-or-later
"""A shim's requests, against a whole daemon with a real spill file."""

from __future__ import annotations

import os
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.unit.daemon_harness import CHUNK, RawPeer, running, status, wait_until
from tests.unit.fake_shim import connect_shim, new_state
from tierd import session, tiers
from tierd.arena import Arena
from tierd.nvme.spillset import SpillSet, Stored
from tierd.wire import Disconnected, RemoteError, Request, WireError
from tierd.wire.connection import Connection

pytestmark = pytest.mark.usefixtures("no_leaked_fds")


async def refused(name: str, request: Awaitable[object]) -> str:
    with pytest.raises(RemoteError) as refusal:
        await request
    assert refusal.value.name == name
    return str(refusal.value)


async def test_the_hello_says_what_there_is(tmp_path: Path) -> None:
    # 4 arenas of 2 slots, 8 extents.
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        assert shim.welcome == {
            "session": 1,
            "chunk": CHUNK,
            "arena": 2 * CHUNK,
            "ram": (8 - 2) * CHUNK,
            "spill": 8 * CHUNK,
        }
        assert await shim.call("memory") == {"total": 14 * CHUNK, "free": 14 * CHUNK}
        await shim.call("vram", slots=3, bytes=7 << 20)
        await shim.call("decided", paging="mapped", vram_source="asked")
        await refused("EINVAL", shim.call("decided", paging="off and on", vram_source="asked"))
        await shim.alloc(0, 5)
        assert await shim.call("memory") == {"total": 14 * CHUNK, "free": 12 * CHUNK}
        snapshot = await status(conf)
        assert snapshot["tiers"]["vram"] == {"total_bytes": 7 << 20, "used_bytes": 0}
        (shown,) = snapshot["sessions"]
        assert (shown["pid"], shown["name"], shown["uid"]) == (os.getpid(), "test", os.geteuid())
        assert (shown["vram_slots"], shown["committed_chunks"]) == (3, 5)
        assert (shown["paging"], shown["vram_source"]) == ("mapped", "asked")


async def test_a_bad_state_memfd_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as conf:
        with RawPeer(conf.socket) as peer:
            state = new_state(seals=0)
            hello = {"id": 4, "op": "hello", "v": 1, "role": "shim", "pid": 1, "name": "", "key": ""}
            answer = await peer.ask(hello, [state])
            os.close(state)
            assert answer is not None
            assert (answer["re"], answer["error"]) == (4, "EPERM")
            assert "F_SEAL_SHRINK" in answer["message"]
            assert await peer.at_end()


async def test_bytes_go_to_t3_and_come_back(tmp_path: Path) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await shim.alloc(0, 10)
        arena = await shim.arena()
        assert arena.slots == 2
        for chunk in range(8):
            arena.write(0, b"chunk %d. " % chunk)
            await shim.call("spill", chunk=chunk, arena=arena.id, slot=0)
        arena.write(0, b"-")
        assert (await status(conf))["tiers"]["nvme"] == {"total_bytes": 8 * CHUNK, "used_bytes": 8 * CHUNK}
        for chunk in reversed(range(8)):
            await shim.call("fetch", chunk=chunk, arena=arena.id, slot=1)
            expected = b"chunk %d. " % chunk
            assert arena.read(1) == (expected * CHUNK)[:CHUNK]
        (path,) = (await status(conf))["spill"]
        assert (path["used_bytes"], path["written_bytes"], path["read_bytes"]) == (0, 8 * CHUNK, 8 * CHUNK)
        assert path["reading_ns"] > 0


async def test_many_at_once_come_back_each_as_it_was(tmp_path: Path) -> None:
    async with running(tmp_path, arena="16MiB") as conf, connect_shim(conf.socket) as shim:
        await shim.alloc(0, 14)
        arena = await shim.arena()

        async def round_trip(slot: int) -> None:
            for turn in range(5):
                data = bytes([slot, turn, 255])
                arena.write(slot, data)
                await shim.call("spill", chunk=slot, arena=arena.id, slot=slot)
                arena.write(slot, b"\0")
                await shim.call("fetch", chunk=slot, arena=arena.id, slot=slot)
                assert arena.read(slot) == (data * CHUNK)[:CHUNK]

        async with trio.open_nursery() as nursery:
            for slot in range(arena.slots):
                nursery.start_soon(round_trip, slot)


async def test_a_full_t3_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    async with running(tmp_path, extents=4) as conf, connect_shim(conf.socket) as shim:
        # 8 slots less 2 for transit, and 4 extents.
        assert "room for 10" in await refused("ENOMEM", shim.alloc(0, 11))
        await shim.alloc(0, 4)
        await shim.alloc(4, 6)
        assert "room for 0" in await refused("ENOMEM", shim.alloc(10, 1))
        arena = await shim.arena()
        for chunk in range(4):
            arena.write(0, bytes([chunk]))
            await shim.call("spill", chunk=chunk, arena=arena.id, slot=0)
        await refused("ENOSPC", shim.call("spill", chunk=5, arena=arena.id, slot=0))
        await refused("ENOMEM", shim.alloc(10, 1))
        for chunk in range(4):
            await shim.call("fetch", chunk=chunk, arena=arena.id, slot=1)
            assert arena.read(1) == bytes([chunk]) * CHUNK
        await shim.call("free", first=0)
        await shim.alloc(20, 4)


async def test_without_t3(tmp_path: Path) -> None:
    async with running(tmp_path, extents=0) as conf, connect_shim(conf.socket) as shim:
        assert shim.welcome["spill"] == 0
        await shim.alloc(0, 6)
        await refused("ENOMEM", shim.alloc(6, 1))
        arena = await shim.arena()
        await refused("ENOSPC", shim.call("spill", chunk=0, arena=arena.id, slot=0))


async def test_each_refusal_of_alloc_and_free(tmp_path: Path) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket, chunks=16) as shim:
        await shim.alloc(4, 4)
        for first, chunks in ((4, 4), (5, 1), (0, 5), (7, 2), (0, 16)):
            assert "are allocated already" in await refused("EEXIST", shim.alloc(first, chunks))
        assert "the map has 16" in await refused("EINVAL", shim.alloc(14, 3))
        short = shim.call("alloc", first=0, chunks=1, bytes=CHUNK + 1, address=0)
        assert "do not fit 1 chunks" in await refused("EINVAL", short)
        await refused("EINVAL", shim.call("free", first=5))
        await shim.call("free", first=4)
        await refused("EINVAL", shim.call("free", first=4))
        await shim.alloc(0, 4)
        await shim.alloc(8, 4)
        await shim.alloc(4, 4)
        await refused("EISCONN", shim.connection.call("hello", HELLO, [shim.state]))


HELLO = {"v": 1, "role": "shim", "pid": 1, "name": "", "key": ""}


async def test_an_allocation_can_be_trimmed(tmp_path: Path) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await shim.alloc(4, 4)
        await shim.alloc(8, 2)
        arena = await shim.arena()
        for chunk in (5, 7, 8):
            await shim.call("spill", chunk=chunk, arena=arena.id, slot=0)
        for _ in range(2):  # also when it is asked for again
            await shim.call("trim", first=4, chunks=2)
            snapshot = await status(conf)
            assert snapshot["sessions"][0]["committed_chunks"] == 4
            assert snapshot["tiers"]["nvme"]["used_bytes"] == 2 * CHUNK
        await refused("EINVAL", shim.call("spill", chunk=6, arena=arena.id, slot=0))
        await refused("EINVAL", shim.call("trim", first=4, chunks=3))
        await refused("EINVAL", shim.call("trim", first=5, chunks=1))
        await shim.alloc(6, 2)
        await shim.call("free", first=4)
        assert (await status(conf))["sessions"][0]["committed_chunks"] == 4


async def test_vram_cannot_shrink_under_what_is_allocated(tmp_path: Path) -> None:
    async with running(tmp_path, extents=0) as conf, connect_shim(conf.socket) as shim:
        await shim.call("vram", slots=4, bytes=4 * CHUNK)
        await shim.alloc(0, 10)
        await refused("ENOMEM", shim.call("vram", slots=3, bytes=3 * CHUNK))
        await shim.call("free", first=0)
        await shim.call("vram", slots=3, bytes=3 * CHUNK)


async def test_an_extent_is_kept_if_asked_for_and_nobody_lacks_it(tmp_path: Path) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await shim.alloc(0, 5)
        arena = await shim.arena()

        async def fetch(chunk: int, keep: int) -> dict[str, int | str]:
            return await shim.call("fetch", chunk=chunk, arena=arena.id, slot=1, keep=keep)

        async def used() -> int:
            return int((await status(conf))["tiers"]["nvme"]["used_bytes"]) // CHUNK

        for chunk in range(5):
            arena.write(0, b"chunk %d. " % chunk)
            await shim.call("spill", chunk=chunk, arena=arena.id, slot=0)
        assert await fetch(0, 1) == {"kept": 1}
        assert await used() == 5
        # It is T3's still: to be fetched again, and dropped before another is written.
        await refused("EEXIST", shim.call("spill", chunk=0, arena=arena.id, slot=1))
        assert await fetch(0, 0) == {"kept": 0}
        await refused("ENOENT", fetch(0, 1))
        assert await used() == 4
        # All that needs a place below T1 is two chunks and two more; beyond, nothing is kept.
        await shim.call("vram", slots=4, bytes=4 * CHUNK)
        assert await fetch(1, 1) == {"kept": 0}
        assert await fetch(2, 1) == {"kept": 1}


async def test_nothing_is_kept_in_a_t3_that_is_nearly_full(tmp_path: Path) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await shim.alloc(0, 8)
        arena = await shim.arena()
        for chunk in range(8):
            await shim.call("spill", chunk=chunk, arena=arena.id, slot=0)
        for chunk, kept in ((0, 0), (1, 1)):
            answer = await shim.call("fetch", chunk=chunk, arena=arena.id, slot=1, keep=1)
            assert answer == {"kept": kept}


async def test_each_refusal_of_spill_and_fetch(tmp_path: Path) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await shim.alloc(0, 4)
        arena = await shim.arena()
        place = {"chunk": 0, "arena": arena.id, "slot": 0}
        for op in ("spill", "fetch"):
            assert "not allocated" in await refused("EINVAL", shim.call(op, **(place | {"chunk": 4})))
            assert "not this session's" in await refused("EINVAL", shim.call(op, **(place | {"arena": 99})))
            assert "an arena has 2" in await refused("EINVAL", shim.call(op, **(place | {"slot": 2})))
        await refused("ENOENT", shim.call("fetch", **place))
        await shim.call("spill", **place)
        await refused("EEXIST", shim.call("spill", **place))
        await shim.call("drop", chunk=0)
        await shim.call("drop", chunk=0)
        await refused("ENOENT", shim.call("fetch", **place))
        async with connect_shim(conf.socket) as other:
            await other.alloc(0, 1)
            await refused("EINVAL", other.call("spill", **place))


class Gate:
    """Reads from the device set `entered` and begin when `open` is set."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self.open = trio.Event()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    load = SpillSet.load

    async def gated(self: SpillSet, stored: Stored, arena: Arena, slot: int) -> None:
        gate.entered.set()
        await gate.open.wait()
        await load(self, stored, arena, slot)

    monkeypatch.setattr(SpillSet, "load", gated)
    return gate


async def test_one_request_a_chunk_and_a_slot(tmp_path: Path, gate: Gate) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await shim.alloc(0, 4)
        arena = await shim.arena()
        await shim.call("spill", chunk=0, arena=arena.id, slot=0)
        await shim.call("spill", chunk=1, arena=arena.id, slot=0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: shim.call("fetch", chunk=0, arena=arena.id, slot=0))
            await gate.entered.wait()
            await refused("EBUSY", shim.call("fetch", chunk=0, arena=arena.id, slot=1))
            await refused("EBUSY", shim.call("fetch", chunk=1, arena=arena.id, slot=0))
            await refused("EBUSY", shim.call("drop", chunk=0))
            await refused("EBUSY", shim.call("free", first=0))
            gate.open.set()
        await shim.call("fetch", chunk=1, arena=arena.id, slot=0)
        await shim.call("free", first=0)


async def test_requests_are_bounded(tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MAX_UNDER_WAY", 1)
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await shim.alloc(0, 4)
        arena = await shim.arena()
        await shim.call("spill", chunk=0, arena=arena.id, slot=0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: shim.call("fetch", chunk=0, arena=arena.id, slot=0))
            await gate.entered.wait()
            assert "no answer yet" in await refused("EBUSY", shim.call("arena"))
            await shim.alloc(4, 1)  # what is answered at once is not counted
            gate.open.set()
        await shim.arena()


async def test_a_message_against_the_protocol_ends_the_session(tmp_path: Path) -> None:
    async with running(tmp_path) as conf:
        with RawPeer(conf.socket) as peer:
            state = new_state()
            assert await peer.ask({"id": 0, "op": "hello", **HELLO}, [state])
            os.close(state)
            answer = await peer.ask({"id": 8, "op": "drop", "chunk": 0, "colour": 1})
            assert answer == {"re": 8, "error": "EBADMSG", "message": "colour: unknown key"}
            assert await peer.at_end()
        await wait_until(conf, sessions=0)


async def test_the_shims_view_of_itself_is_shown(tmp_path: Path) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await shim.alloc(0, 6)
        shim.show(0, b"11^22.")
        shim.count(launches=12, stall_ns=5)
        (shown,) = (await status(conf))["sessions"]
        assert shown["resident_bytes"] == {"vram": 3 * CHUNK, "ram": 2 * CHUNK, "nvme": 0}
        assert shown["counters"]["launches"] == 12
        assert shown["counters"]["stall_ns"] == 5


async def test_a_name_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket, name="a\x1b[2J\nb\u202e\u00e9"):
        (shown,) = (await status(conf))["sessions"]
        assert shown["name"] == "a?[2J?b?\u00e9"


# Arenas that go from one session to another


async def test_an_arena_is_recalled_for_a_session_that_needs_it(tmp_path: Path) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as rich:
        await rich.call("vram", slots=2, bytes=0)
        await rich.alloc(0, 8)
        arenas = [await rich.arena() for _ in range(4)]
        arenas[3].write(0, b"kept")

        async def empty(arena: int) -> None:
            assert arena == arenas[3].id
            await rich.call("spill", chunk=5, arena=arena, slot=0)

        rich.on_recall = empty
        async with connect_shim(conf.socket) as poor:
            await poor.alloc(0, 2)
            arena = await poor.arena()
            assert arena.read(0) == bytes(CHUNK)
            assert arena.id not in {one.id for one in arenas}
            await refused("EINVAL", rich.call("spill", chunk=6, arena=arenas[3].id, slot=0))
            assert (await status(conf))["arenas"] == 4
            # Both have their share now.
            await poor.alloc(2, 2)
            rich.on_recall = None
            with trio.fail_after(60):
                await refused("ENOSPC", rich.call("arena"))
            await rich.call("fetch", chunk=5, arena=arenas[0].id, slot=1)
            assert arenas[0].read(1) == (b"kept" * CHUNK)[:CHUNK]


async def test_an_arena_that_is_returned_serves_another(tmp_path: Path) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as rich:
        arenas = [await rich.arena() for _ in range(4)]
        await rich.call("return", arena=arenas[1].id)
        assert (await status(conf))["arenas"] == 3
        await refused("EINVAL", rich.call("return", arena=arenas[1].id))
        await refused("EINVAL", rich.call("return", arena=99))
        await refused("EINVAL", rich.call("spill", chunk=0, arena=arenas[1].id, slot=0))
        async with connect_shim(conf.socket) as poor:
            assert (await poor.arena()).id not in {one.id for one in arenas}


@pytest.mark.parametrize("answer", ["ENOENT", ""])
async def test_an_arena_may_be_returned_while_it_is_recalled(tmp_path: Path, answer: str) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as rich:
        for _ in range(4):
            await rich.arena()

        async def returned(arena: int) -> None:
            await rich.call("return", arena=arena)

        rich.on_recall, rich.answer_recall = returned, answer
        async with connect_shim(conf.socket) as poor:
            await poor.alloc(0, 2)
            await poor.arena()
            assert (await status(conf))["arenas"] == 4


async def test_who_does_not_give_back_keeps_it(tmp_path: Path) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as rich:
        for _ in range(4):
            await rich.arena()
        async with connect_shim(conf.socket) as poor:
            await poor.alloc(0, 2)
            await refused("ENOSPC", poor.call("arena"))
            assert (await status(conf))["arenas"] == 4


async def test_who_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "RECALL_PATIENCE", 0.01)
    async with running(tmp_path) as conf, connect_shim(conf.socket) as rich:
        for _ in range(4):
            await rich.arena()
        answered = trio.Event()

        async def late(_: int) -> None:
            await answered.wait()

        rich.on_recall = late
        async with connect_shim(conf.socket) as poor:
            await poor.alloc(0, 2)
            assert "in time" in await refused("ENOSPC", poor.call("arena"))
            answered.set()
            monkeypatch.undo()
            with trio.fail_after(60):
                await poor.arena()


async def test_the_end_of_one_session_serves_another_that_waits(tmp_path: Path) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as poor, trio.open_nursery() as nursery:
        await poor.alloc(0, 2)
        recalled = trio.Event()

        async def never(_: int) -> None:
            recalled.set()
            await trio.sleep_forever()

        async with connect_shim(conf.socket) as rich:
            for _ in range(4):
                await rich.arena()
            rich.on_recall = never
            nursery.start_soon(poor.arena)
            await recalled.wait()
        with trio.fail_after(60):
            while not poor.arenas:
                await trio.testing.wait_all_tasks_blocked(0.001)


async def test_an_arena_that_cannot_be_made_is_refused_and_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        with monkeypatch.context() as broken:
            broken.setattr(SpillSet, "add_arena", fail)
            for _ in range(5):
                assert "Cannot allocate memory" in await refused("ENOSPC", shim.call("arena"))
        for _ in range(4):
            await shim.arena()
        await refused("ENOSPC", shim.call("arena"))


# The end


async def test_bye_is_answered_when_everything_is_given_back(tmp_path: Path) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await shim.alloc(0, 4)
        arena = await shim.arena()
        await shim.call("spill", chunk=0, arena=arena.id, slot=0)
        await shim.call("spill", chunk=1, arena=arena.id, slot=1)
        shim.show(0, b"3321")
        shim.count(launches=3, vram_slots_most=1, arena_slots_most=2)
        await shim.call("fetch", chunk=1, arena=arena.id, slot=1)
        shim.show(0, bytes(4))  # as a shim does: its letters are gone before its free comes
        await shim.call("free", first=0)
        await shim.call("bye")
        snapshot = await status(conf)
        assert snapshot["sessions"] == []
        assert snapshot["arenas"] == 0
        assert snapshot["tiers"]["nvme"]["used_bytes"] == 0
        (ended,) = snapshot["ended"]
        assert ended["peak_chunks"] == 4
        assert ended["counters"]["launches"] == 3
        assert ended["nvme_written_bytes"] == 2 * CHUNK
        # Each tier when it held most, not what was left at the end.
        assert ended["resident_bytes"] == {"vram": CHUNK, "ram": 2 * CHUNK, "nvme": 2 * CHUNK}
        with trio.fail_after(60):
            await shim.ended.wait()
        with pytest.raises(Disconnected):
            await shim.call("memory")


async def test_status_while_a_bye_cannot_be_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is stopped does not read: what it had is given back, and it is shown no more."""
    monkeypatch.setattr(session, "BYE_PATIENCE", 0.1)
    answer = Connection.answer

    async def full_for_a_bye(self: Connection, request: Request, *arguments: Any) -> None:
        if request.op.name == "bye":
            await trio.sleep_forever()
        await answer(self, request, *arguments)

    monkeypatch.setattr(Connection, "answer", full_for_a_bye)
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await shim.alloc(0, 4)
        async with trio.open_nursery() as nursery:

            async def say_bye() -> None:
                with pytest.raises(Disconnected):
                    await shim.call("bye")

            nursery.start_soon(say_bye)
            await wait_until(conf, sessions=0)


async def test_status_survives_figures_that_cannot_be(tmp_path: Path) -> None:
    """They are a shim's; added up they must still fit a message, or nobody gets a status any more."""
    async with running(tmp_path) as conf:
        async with connect_shim(conf.socket) as shim:
            shim.count(vram_slots_most=(1 << 64) - 1, arena_slots_most=(1 << 64) - 1)
            with pytest.raises(WireError, match="bytes: "):
                await shim.call("vram", slots=1, bytes=(1 << 48) + 1)
        await wait_until(conf, sessions=0)
        async with connect_shim(conf.socket) as one, connect_shim(conf.socket) as other:
            for shim in (one, other):
                await shim.call("vram", slots=1, bytes=1 << 48)
            assert (await status(conf))["tiers"]["vram"]["total_bytes"] == 2 << 48


async def test_a_session_that_ends_during_a_transfer_waits_for_it(tmp_path: Path, gate: Gate) -> None:
    async with running(tmp_path) as conf:
        async with connect_shim(conf.socket) as shim, trio.open_nursery() as nursery:
            await shim.alloc(0, 4)
            arena = await shim.arena()
            await shim.call("spill", chunk=0, arena=arena.id, slot=0)

            async def fetch() -> None:
                with pytest.raises(Disconnected):
                    await shim.call("fetch", chunk=0, arena=arena.id, slot=0)

            nursery.start_soon(fetch)
            await gate.entered.wait()
            shim.close()
        snapshot = await wait_until(conf, sessions=0)
        assert snapshot["arenas"] == 0
        assert snapshot["tiers"]["nvme"]["used_bytes"] == 0


async def test_the_last_sixty_four_are_remembered(tmp_path: Path) -> None:
    async with running(tmp_path) as conf:
        for n in range(66):
            async with connect_shim(conf.socket, name=f"n{n}") as shim:
                await shim.call("bye")
        ended = (await status(conf))["ended"]
        assert [one["name"] for one in ended] == [f"n{n}" for n in range(2, 66)]

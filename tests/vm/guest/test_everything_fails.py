# SPDX-License-Identifier: GPL-2.0-or-later
"""T3 while devices fail in all ways, one after the other."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import trio
import trio.testing

from tests.unit.nvme_harness import CHUNK, MemfdArena, added
from tests.vm.guest.faulty import (
    CORRUPT,
    DEADLINE,
    opened,
    spill_over,
    until,
)
from tests.vm.guest.harness import (
    linear,
    mapped,
)
from tierd.nvme import NoSpace, Stored

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("no_leaked_fds")]


async def test_every_read_returns_what_was_written_last_or_an_error(
    arena: MemfdArena, disks: tuple[str, str]
) -> None:
    """Applications store and load while devices fail, stall, lie, are drained and come back."""
    dice = random.Random(1)  # the moments, and so what meets what, differ from run to run
    seconds, tasks = 10.0, 4
    with linear(disks[0]) as first, mapped("linear", disks[1], f"{disks[1]} 0", name="second") as second:
        devices = {first.path: (first, disks[0]), second.path: (second, disks[1])}
        seen: Counter[str] = Counter()
        async with spill_over(*devices, stalls=[*devices]) as spill:
            with added(spill, arena):
                until_then = trio.current_time() + seconds

                def over() -> bool:
                    # As long as it takes on a host that is busy.
                    enough = min(seen["stored"], seen["loaded"]) > 20
                    return enough and trio.current_time() >= until_then

                async def use(number: int) -> None:
                    own: dict[Stored, bytes] = {}
                    while not over():
                        slot = 2 * number
                        if own and (len(own) > 10 or dice.random() < 0.5):
                            stored = dice.choice(list(own))
                            try:
                                await spill.load(stored, arena, slot + 1)
                            except OSError:
                                seen["load failed"] += 1
                            else:
                                assert arena[slot + 1] == own[stored]
                                seen["loaded"] += 1
                            if dice.random() < 0.5:
                                spill.give_back(stored)
                                del own[stored]
                        else:
                            content = arena[slot] = dice.randbytes(CHUNK)
                            try:
                                own[await spill.store(arena, slot)] = content
                                seen["stored"] += 1
                            except (OSError, NoSpace):
                                seen["store failed"] += 1
                                await trio.sleep(0.02)
                    for stored in own:
                        spill.give_back(stored)

                async def harm() -> None:
                    while not over():
                        device, under = dice.choice(list(devices.values()))
                        path = spill.find(device.path)
                        whole = f"{under} 0"
                        match dice.choice(["flakey", "writes", "lies", "stall", "drain", "slow"]):
                            case "flakey":
                                device.reload("flakey", under, f"{whole} 0 1")
                            case "writes":
                                device.reload("flakey", under, f"{whole} 0 1 1 error_writes")
                            case "lies":
                                device.reload("flakey", under, f"{whole} 0 1 {CORRUPT.format('r', 1)}")
                            case "slow":
                                device.reload("delay", under, f"{whole} {dice.choice((20, 400))}")
                            case "stall":
                                device.suspend()
                            case "drain" if path is not None:
                                spill.drain(path)
                        await trio.sleep(0.5)
                        device.reload("linear", under, whole)
                        if path is not None and path.state != "failed":
                            spill.restore(path)
                        elif path is not None and not path.extents.owned:
                            await spill.remove(path)
                            await spill.add(opened(device.path, DEADLINE))
                            seen["replaced"] += 1

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(harm)
                    for number in range(tasks):
                        nursery.start_soon(use, number)
                await until(lambda: not any(path.used for path in spill.snapshot()))
        print(dict(seen))

# SPDX-License-Identifier: GPL-2.0-or-later
"""Levels and events: hysteresis, what raises them, who hears of them and who has missed some."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vm.guest.kmod.device import (
    ATTRIBUTES,
    MIB,
    attribute,
    buffer,
    insert_module,
    meminfo,
    modules,
    remove_module,
    set_parameter,
    wait_until_unused,
)
from tests.vm.guest.kmod.genl import CAUSES, LEVELS, Family
from tests.vm.guest.kmod.genl import attribute as netlink_attribute

pytestmark = pytest.mark.vm

ALL_MIB = 1_000_000
TRACING = Path("/sys/kernel/tracing")


@pytest.fixture(autouse=True)
def calm() -> Iterator[None]:
    """Before each test nothing is asked for, and nothing will be unless it says so."""
    set_watermarks(0, 0, 0)
    set_parameter("period_ms", 1000)
    yield
    set_watermarks(0, 0, 0)


def set_watermarks(low: int | str, high: int | str, minimum: int | str = 0) -> None:
    """MiB, or percent of RAM."""
    # In this order, one that is higher than before is never met from above in between.
    set_parameter("high_watermark", high)
    set_parameter("low_watermark", low)
    set_parameter("min_watermark", minimum)


def level() -> str:
    return (ATTRIBUTES / "level").read_text().strip()


def test_a_level_is_left_at_the_watermark_above_it() -> None:
    available = attribute("available_bytes") // MIB
    below, above = available // 2, available + 500
    seen = []
    for low, high, minimum in [
        (below, above, 0),  # from calm: above low
        (above, above, 0),
        (below, above, 0),  # from low: below high
        (below, below, 0),
        (above, above, above),
        (above, above, 0),  # from critical: below low
        (below, above, 0),
        (above, above, above),
        (0, 0, 0),
    ]:
        set_watermarks(low, high, minimum)
        seen.append(level())
    assert seen == ["calm", "low", "low", "calm", "critical", "critical", "low", "critical", "calm"]


def test_watermarks_are_mib_or_percent_and_kept_in_order() -> None:
    total = meminfo("MemTotal")
    set_watermarks("10%", "50%", "5")
    assert attribute("min_watermark_bytes") == 5 * MIB
    assert attribute("low_watermark_bytes") == pytest.approx(total / 10, abs=MIB)
    assert attribute("high_watermark_bytes") == pytest.approx(total / 2, abs=MIB)
    set_watermarks(100, 50, 200)
    assert [attribute(f"{name}_watermark_bytes") for name in ("min", "low", "high")] == [100 * MIB] * 3
    for wrong in (" ", "%", "-1", "101%", "5 %%", "many", "1" * 20):
        with pytest.raises(OSError):
            set_parameter("low_watermark", wrong)
    with pytest.raises(OSError):
        set_parameter("period_ms", 0)
    assert attribute("low_watermark_bytes") == 100 * MIB


def test_netlink_says_what_attributes_say() -> None:
    with Family() as family, buffer(4 * MIB):
        state = family.get()
        assert LEVELS[state["level"]] == level()
        assert CAUSES[state["cause"]] == (ATTRIBUTES / "cause").read_text().strip()
        assert state["used"] == attribute("used_bytes") == 4 * MIB
        assert state["idle"] == attribute("pool_bytes")
        assert state["seq"] == attribute("level_changes")
        assert state["wanted"] == 0
        assert state["high_watermark"] == 0
        assert len(state) == 14
        set_watermarks(ALL_MIB, ALL_MIB)
        state = family.get()
        assert state["wanted"] == ALL_MIB * MIB - state["available"]
        report = dict(line.split() for line in (ATTRIBUTES / "pool_info").read_text().splitlines())
        assert report["level"] == "low"
        assert int(report["used_bytes"]) == 4 * MIB


def test_every_other_attribute_is_one_value() -> None:
    values = {path.name: path.read_text() for path in ATTRIBUTES.iterdir() if path.is_file()}
    del values["uevent"], values["pool_info"]
    assert all(len(value.split()) == 1 for value in values.values())


def test_requests_without_meaning_are_refused() -> None:
    with Family() as family:
        for command, payload, error in [
            (2, b"", errno.EOPNOTSUPP),  # events are not asked for
            (0, b"", errno.EOPNOTSUPP),
            (200, b"", errno.EOPNOTSUPP),
            (1, netlink_attribute(2, b"\1\0\0\0"), errno.EINVAL),
            (1, netlink_attribute(1000, b""), errno.EINVAL),
        ]:
            with pytest.raises(OSError) as raised:
                family.ask(family.id, command, payload)
            assert raised.value.errno == error, command
        assert family.get()["level"] == 0


def test_anybody_may_ask_and_listen_but_not_from_another_namespace() -> None:
    code = """
import os, sys
from tests.vm.guest.kmod.genl import Family
os.setgroups([]), os.setgid(65534), os.setuid(65534)
with Family(events=True) as family:
    print(family.get()["level"], flush=True)
    sys.stdin.readline()
    print(family.event()["level"])
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "0\n"
        set_watermarks(ALL_MIB, ALL_MIB)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "1\n"
    done = subprocess.run(["unshare", "--net", *command], input="", capture_output=True, text=True)
    assert "FileNotFoundError" in done.stderr


def test_events_tell_of_changes_and_are_repeated_while_it_is_not_calm() -> None:
    with Family(events=True) as family:
        before = family.get()["seq"]
        set_watermarks(ALL_MIB, ALL_MIB)
        # Several at once may be one message.
        first = family.event()
        assert (LEVELS[first["level"]], first["seq"]) == ("low", before + 1)
        again = family.event()
        assert (LEVELS[again["level"]], again["seq"]) == ("low", before + 1)
        set_watermarks(ALL_MIB, ALL_MIB, ALL_MIB)
        while (event := family.event())["seq"] == before + 1:
            pass
        assert (LEVELS[event["level"]], event["seq"]) == ("critical", before + 2)
        assert event["wanted"] > 0
        assert event["deadline_ms"] == 0


def test_what_is_wanted_in_addition_is_an_event() -> None:
    available = attribute("available_bytes") // MIB
    with Family(events=True) as family:
        set_watermarks(available + 100, available + 100)
        wanted = family.event()["wanted"]
        # A watermark that is higher by this wants that much more.
        set_parameter("high_watermark", available + 700)
        while (event := family.event())["wanted"] < wanted + 500 * MIB:
            pass
        assert LEVELS[event["level"]] == "low"


def flip(count: int) -> float:
    """So many level changes, by reports of T3, in seconds; the level is low, or critical for want of room."""
    program = Path(os.environ["KMOD_PROGRAMS"]) / "flip"
    return float(subprocess.run([program, str(count)], check=True, capture_output=True, text=True).stdout)


def test_of_ten_thousand_changes_none_is_unreported() -> None:
    changes = 10_000
    with Family(events=True, buffer=1 << 20) as family:
        set_watermarks(ALL_MIB, ALL_MIB)
        last = start = family.event()["seq"]
        thread = threading.Thread(target=lambda: took.append(flip(changes)))
        took: list[float] = []
        thread.start()
        messages = merged = 0
        while last < start + changes:
            try:
                seq = family.event()["seq"]
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue  # said as well: some are missing, and the next one tells how many
            assert seq >= last
            merged += max(0, seq - last - 1)
            messages += seq > last
            last = seq
        thread.join()
        assert last == start + changes == messages + merged + start == family.get()["seq"]
        print(f"{changes / took[0]:.0f} changes a second: {messages} messages, {merged} merged")


def test_a_listener_that_does_not_read_knows_that_it_missed_some() -> None:
    with Family(events=True) as other, Family(events=True, buffer=1) as family:
        for number in range(20):
            set_watermarks(*(ALL_MIB, ALL_MIB) if number % 2 else (0, 0))
            seq = attribute("level_changes")
            while number and other.event()["seq"] < seq:
                pass
        assert drain(family) >= 1
        assert family.get()["seq"] == seq
        # It hears of what comes after.
        set_watermarks(0, 0)
        while (event := family.event())["level"] != 0:
            pass
        assert event["seq"] == seq + 1


def drain(family: Family) -> int:
    """How often it was said that messages were lost. As long as some are there, no others are taken."""
    lost = 0
    family.socket.setblocking(False)
    while True:
        try:
            family.event()
        except BlockingIOError:
            family.socket.settimeout(300)
            return lost
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            lost += 1


EATER = """
import mmap, sys
size = int(sys.argv[1])
memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000 | 0x8000)
print("done", flush=True)
sys.stdin.readline()
"""
"""MAP_NORESERVE and MAP_POPULATE: all of it, at once."""


@contextmanager
def eater(size: int) -> Iterator[subprocess.Popen[str]]:
    """A process that takes memory, and that is chosen when one must be killed."""

    def choose_me() -> None:
        Path("/proc/self/oom_score_adj").write_text("1000")

    command = [sys.executable, "-c", EATER, str(size)]
    overcommit = Path("/proc/sys/vm/overcommit_memory")
    before = overcommit.read_text()
    overcommit.write_text("1")
    try:
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=choose_me
        ) as process:
            yield process
            process.kill()
    finally:
        overcommit.write_text(before)


@contextmanager
def traced(events: str) -> Iterator[list[str]]:
    """The lines of these tracepoints, once it is over."""
    lines: list[str] = []
    switch = TRACING / "events" / events / "enable"
    (TRACING / "trace").write_text("")
    switch.write_text("1")
    try:
        yield lines
    finally:
        switch.write_text("0")
        text = (TRACING / "trace").read_text()
        lines += [line for line in text.splitlines() if not line.startswith("#")]


def test_reclaim_makes_it_look_at_once() -> None:
    # Its own clock is not in this process; what is queued for reclaim is.
    ours = f"-{os.getpid()} "
    with traced("workqueue/workqueue_queue_work") as lines:
        Path("/proc/sys/vm/drop_caches").write_text("2")
    assert any(ours in line and "function=gb_clock_run" in line for line in lines)


def test_what_is_found_because_of_reclaim_says_so() -> None:
    huge_pages, drop_caches = Path("/proc/sys/vm/nr_hugepages"), Path("/proc/sys/vm/drop_caches")
    if not huge_pages.exists():
        pytest.skip("this kernel has no hugetlb pages: NOT tested")
    set_parameter("period_ms", 3_600_000)
    causes: list[str] = []
    with Family(events=True) as family:
        # Huge pages are taken without writing to them: faster than the clock, which counts on 4 GiB a
        # second. On a busy host it may find it first all the same, but not each time.
        while "shrinker" not in causes and len(causes) < 20:
            available = attribute("available_bytes") // MIB
            set_watermarks(available - 800, available - 700)
            try:
                huge_pages.write_text("450")
                drop_caches.write_text("2")
                event = family.event()
                assert LEVELS[event["level"]] == "low"
                causes.append(CAUSES[event["cause"]])
            finally:
                huge_pages.write_text("0")
            while event["level"] != 0:
                set_watermarks(0, 0)
                event = family.event()
    assert causes[-1] == "shrinker"


def test_who_eats_memory_is_noticed_also_with_a_slow_clock() -> None:
    set_parameter("period_ms", 3_600_000)
    with Family(events=True) as family:
        set_watermarks(300, 300)
        start = attribute("level_changes")
        with eater(attribute("available_bytes") - 150 * MIB):
            event = family.event()
        assert event["seq"] == start + 1
        assert LEVELS[event["level"]] == "low"
        assert CAUSES[event["cause"]] in ("shrinker", "watermark")


def test_before_something_is_killed_the_pool_goes_and_it_is_critical() -> None:
    with buffer(100 * MIB):
        pass
    wait_until_unused()
    assert attribute("pool_bytes") >= 100 * MIB
    ooms = attribute("ooms")
    with Family(events=True) as family, eater(MIB) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "done\n"
        Path("/proc/sysrq-trigger").write_text("f")
        event = family.event()
        assert LEVELS[event["level"]] == "critical"
        assert CAUSES[event["cause"]] == "oom"
        assert event["ooms"] == ooms + 1
        assert event["idle"] == 0
        assert victim.wait(300) == -9
        # Without another, memory not being short at all, it is calm again.
        while (event := family.event())["level"] != 0:
            pass
        assert event["ooms"] == ooms + 1


def test_who_listens_hears_of_it_before_the_first_is_killed() -> None:
    ooms = attribute("ooms")
    # Who found no memory just before it came free again has the kernel kill once more: the small one then.
    with Family(events=True) as family, eater(MIB):
        set_watermarks("50%", "60%", "10%")
        with eater(meminfo("MemTotal") * 2) as process:
            event = family.event()
            assert event["ooms"] == ooms
            assert process.wait(300) == -9
            while (event := family.event())["ooms"] == ooms:
                assert event["wanted"] > 0
            assert LEVELS[event["level"]] == "critical"
        while (event := family.event())["level"] != 0:
            pass


def test_while_memory_is_short_the_pool_keeps_nothing() -> None:
    with buffer(20 * MIB):
        pass
    wait_until_unused()
    assert attribute("pool_bytes") >= 20 * MIB
    with buffer(20 * MIB):
        set_watermarks(ALL_MIB, ALL_MIB)
        assert attribute("pool_bytes") == 0
    wait_until_unused()
    assert attribute("pool_bytes") == 0
    set_watermarks(0, 0)
    with buffer(20 * MIB):
        pass
    wait_until_unused()
    assert attribute("pool_bytes") == 20 * MIB


def test_tracepoints_tell_of_memory_and_levels() -> None:
    size = 6 * MIB + 4096
    with traced("greenboost") as lines:
        with buffer(size):
            pass
        wait_until_unused()
        with buffer(2 * MIB):
            pass
        wait_until_unused()
        set_watermarks(ALL_MIB, ALL_MIB)
        set_watermarks(0, 0)
    words = [line.split(": ", 1)[1].split() for line in lines]
    progress = [line for line in words if line[0] == "greenboost_alloc_progress:"]
    assert [line[2] for line in progress[:4]] == [f"done={n}" for n in (2 * MIB, 4 * MIB, 6 * MIB, size)]
    allocated = next(line for line in words if line[0] == "greenboost_alloc:")
    assert allocated[2:] == [f"size={size}", f"huge={6 * MIB}", "node=-1", "ret=0"]
    freed = next(line for line in words if line[0] == "greenboost_free:")
    assert freed[1:] == [allocated[1], f"size={size}"]
    names = {line[0] for line in words}
    assert {f"greenboost_pool_{name}:" for name in ("keep", "take", "shrink")} <= names
    changes = [line[1:4] for line in words if line[0] == "greenboost_level:"]
    assert changes == [["old=0", "level=1", "cause=0"], ["old=1", "level=0", "cause=0"]]


def test_the_module_goes_under_those_who_listen() -> None:
    with Family(events=True) as family:
        set_watermarks(ALL_MIB, ALL_MIB)
        assert family.event()["level"] == 1
        remove_module("greenboost")
        try:
            with pytest.raises(OSError) as raised:
                family.get()
            assert raised.value.errno == errno.ENOENT
        finally:
            insert_module(modules()[0])
    with Family(events=True) as family:
        assert family.get()["seq"] == 0
        set_watermarks(ALL_MIB, ALL_MIB)
        assert family.event()["level"] == 1

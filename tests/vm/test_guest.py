# SPDX-License-Identifier: GPL-2.0-or-later
"""tools/vm itself, and with it, on each kernel, the tests in tests/vm/guest.

Each run boots a guest. So there are few of them, and each shows many things.
"""

from __future__ import annotations

import os
import signal
import subprocess
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.vm.conftest import PYTEST, Start
from vmhost import BUILD, ROOT
from vmhost.kernel import SERIES

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="not root: nothing in a VM is tested"),
    pytest.mark.skipif(
        not all((BUILD / "kernels" / series).exists() for series in SERIES),
        reason="no kernels in build/vm (tools/setup vm fetches them): nothing in a VM is tested",
    ),
]

TOOL = str(ROOT / "tools" / "vm")
TESTS = "tests/vm/guest"


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TOOL, *arguments], cwd=cwd, capture_output=True, text=True, errors="replace")


def left_over() -> list[str]:
    """Run directories that are still there, and processes that still use one."""
    found = [str(path) for path in BUILD.glob("run-*")]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{BUILD}/run-" in words:
            found.append(words)
    return found


# What devices do is the same on each kernel; io_uring, and what ends while it waits for them, is not.
# In this order: a device that test_machine.py pulls out stays out.
REST = ["test_daemon_faults.py", "test_paths.py", "test_machine.py"]
FAULTS = ["test_failing_io.py", "test_stalls.py", "test_untrue_devices.py", "test_everything_fails.py"]
GUESTS = {"6.1": [*REST, "-k", "not speed and not come_and_go"], "6.12": REST, "6.12 faults": FAULTS}


@pytest.fixture(scope="module")
def runs(each_guest: Start) -> dict[str, Future[subprocess.CompletedProcess[str]]]:
    def run_tests(guest: str) -> subprocess.CompletedProcess[str]:
        devices = [word for size in ("256MiB", "128MiB", "64MiB") for word in ("--nvme", size)]
        tests = [f"{TESTS}/{word}" if word.endswith(".py") else word for word in GUESTS[guest]]
        return run("--kernel", guest.split()[0], *devices, "--", *PYTEST, *tests)

    return each_guest(run_tests)


def test_every_test_has_a_guest() -> None:
    listed = {word for words in GUESTS.values() for word in words if word.endswith(".py")}
    assert listed == {path.name for path in (ROOT / TESTS).glob("test_*.py")}


@pytest.mark.parametrize("guest", GUESTS)
def test_in_the_guest(guest: str, runs: dict[str, Future[subprocess.CompletedProcess[str]]]) -> None:
    done = runs[guest].result()
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert not Path("/etc/greenboost-vm-was-here").exists()


def test_streams_status_and_directory() -> None:
    there = ROOT / "build"
    script = """
        pwd
        echo "to the other" >&2
        head -c 3000000 /dev/zero | tr '\\0' x
        echo reopened >/dev/stdout
        touch vm-was-here
        echo "$1"
        exit 7
    """
    done = run("--cpus", "1", "--memory", "512M", "--", "sh", "-c", script, "sh", "it's $HOME", cwd=there)
    assert done.returncode == 7, done.stderr
    first, rest = done.stdout.split("\n", 1)
    assert first == str(there)
    assert rest == "x" * 3_000_000 + "reopened\nit's $HOME\n"
    assert done.stderr == "to the other\n"
    (there / "vm-was-here").unlink()
    assert left_over() == []


def test_a_warning_of_the_kernel_fails_a_command_that_did_not(tmp_path: Path) -> None:
    log = tmp_path / "console"
    script = "echo '<4>WARNING: CPU: 0 made up' >/dev/kmsg; echo done"
    done = run("--console", str(log), "--", "sh", "-c", script)
    assert done.returncode == 125
    assert done.stdout == "done\n", done.stderr
    assert "complained" in done.stderr
    assert "the command itself ended with status 0" in done.stderr
    assert "made up" in log.read_text()


def test_a_panic_is_shown() -> None:
    done = run("--", "sh", "-c", "echo before; echo c >/proc/sysrq-trigger")
    assert done.returncode == 125
    assert "Kernel panic - not syncing: sysrq triggered crash" in done.stderr
    assert "Call Trace" in done.stderr
    assert left_over() == []


def test_timeout() -> None:
    done = run("--timeout", "2", "--", "true")
    assert done.returncode == 124
    assert "had not ended after 2 s" in done.stderr
    assert left_over() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(number: signal.Signals) -> None:
    command = [TOOL, "--nvme", "1GiB", "--", "sh", "-c", "echo begun; sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        assert left_over() != []
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    assert left_over() == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("static int __init gb(void) { return -ENODEV; }", "could not be loaded"),
        ("static int __init gb(void) { return nothing(); }", "implicit declaration of function"),
    ],
    ids=["refuses", "does not compile"],
)
def test_a_module_that_cannot_be_had(source: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "Kbuild").write_text("obj-m := nothing.o\n")
    code = f"#include <linux/module.h>\n{source}\nmodule_init(gb);\n"
    (tmp_path / "nothing.c").write_text(code + 'MODULE_DESCRIPTION("none");\nMODULE_LICENSE("GPL");\n')
    done = run("--module", str(tmp_path), "--", "true")
    assert done.returncode == 125
    assert said in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nvme", "lots", "--", "true"], "'lots' is no size"),
        (["--cpus", "0", "--", "true"], "'0' is not a whole number above 0"),
        ([], "COMMAND"),
    ],
)
def test_usage(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_an_unknown_kernel_is_refused_with_what_there_is() -> None:
    done = run("--kernel", "5.4", "--", "true")
    assert done.returncode == 125
    assert "no kernel 5.4: known are 6.1, 6.12" in done.stderr

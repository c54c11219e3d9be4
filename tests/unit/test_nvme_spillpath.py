# SPDX-License-Identifier: GPL-2.0-or-later
"""Opening spill paths: each refusal, what is left behind, and what is taken over."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.nvme_harness import (
    CHUNK,
    DATA,
    as_nobody,
    limited,
    loop_device,
    mounted,
    needs_loop,
    needs_root,
    spill_size,
)
from tierd.nvme import spillpath
from tierd.nvme.errors import SpillPathError
from tierd.nvme.spillfile import SpillFile
from tierd.nvme.superblock import BLOCK, State, Superblock

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

SIZE = spill_size(4)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory in which nothing may change but what the test says."""
    place = tmp_path / "place"
    place.mkdir()
    return place


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spillpath, "_LOCK_PATIENCE", 0.0)


def contents(place: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        path.name: (path.stat().st_mode, path.stat().st_size, path.read_bytes()[:BLOCK])
        for path in place.iterdir()
        if path.is_file()
    }


def refusal(path: Path | str, size: int | None = SIZE, *, ephemeral: bool = False) -> str:
    with pytest.raises(SpillPathError) as caught:
        SpillFile.open(str(path), size, CHUNK, ephemeral=ephemeral).close()
    assert str(caught.value).startswith(f"spill path {path}: ")
    return str(caught.value).removeprefix(f"spill path {path}: ")


def superblock(path: Path | str) -> Superblock:
    with open(path, "rb") as file:
        found = Superblock.unpack(file.read(BLOCK))
    assert found is not None
    return found


# Files that are created


def test_a_created_file_goes_when_it_is_closed(place: Path) -> None:
    path = place / "spill"
    with SpillFile.open(str(path), SIZE + 5, CHUNK) as file:
        assert file.extents == 4
        assert not file.adopted
        found = path.stat()
        assert stat.S_IMODE(found.st_mode) == 0o600
        assert found.st_size == SIZE + 5
        assert found.st_blocks * 512 >= SIZE  # preallocated, not sparse
        assert superblock(path).state is State.OPEN
        assert superblock(path).chunk == CHUNK
        os.fstat(file.fd)
    assert file.fd == -1
    file.close()
    assert contents(place) == {}


def test_a_file_that_took_its_place_stays(place: Path) -> None:
    path = place / "spill"
    with SpillFile.open(str(path), SIZE, CHUNK):
        path.unlink()
        path.write_bytes(b"somebody else's")
    assert path.read_bytes() == b"somebody else's"


@pytest.mark.parametrize("ephemeral", [True, False])
def test_a_file_in_a_directory_has_no_name(ephemeral: bool, place: Path) -> None:
    with SpillFile.open(str(place), SIZE, CHUNK, ephemeral=ephemeral) as file:
        assert file.extents == 4
        assert contents(place) == {}
        assert os.fstat(file.fd).st_nlink == 0


def test_an_ephemeral_file_has_no_name(place: Path) -> None:
    with SpillFile.open(str(place / "spill"), SIZE, CHUNK, ephemeral=True) as file:
        assert contents(place) == {}
        assert stat.S_IMODE(os.fstat(file.fd).st_mode) == 0o600


@needs_root
def test_an_ephemeral_file_where_o_tmpfile_is_missing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the bit that asks for it, O_TMPFILE is O_DIRECTORY, which fails as old file systems do.
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    with SpillFile.open(str(place), SIZE, CHUNK) as file:
        assert contents(place) == {}
        assert os.fstat(file.fd).st_nlink == 0


# Refusals


def test_missing_parent_directory(place: Path) -> None:
    missing = place / "a" / "b"
    wrong = f"the directory {missing.parent} does not exist; create it with 'mkdir -p {missing.parent}' first"
    assert refusal(missing) == wrong
    assert not missing.parent.exists()


def test_missing_directory(place: Path) -> None:
    missing = f"{place}/a/"
    assert (
        refusal(missing)
        == f"the directory {missing} does not exist; create it with 'mkdir -p {missing}' first"
    )


def test_missing_file_without_a_size(place: Path) -> None:
    wrong = "does not exist and no size is given; give one, as in PATH:64GiB"
    assert refusal(place / "spill", None) == wrong
    assert contents(place) == {}


def test_directory_without_a_size(place: Path) -> None:
    assert refusal(place, None) == "is a directory and no size is given; give one, as in DIRECTORY:64GiB"


def test_empty_file_without_a_size(place: Path) -> None:
    (place / "spill").touch()
    assert refusal(place / "spill", None) == "is empty and no size is given; give one, as in PATH:64GiB"


def test_dangling_symbolic_link(place: Path) -> None:
    (place / "link").symlink_to(place / "nothing")
    assert refusal(place / "link") == "is a symbolic link to nothing; remove it or mend it"
    assert not (place / "nothing").exists()


def test_neither_file_nor_directory_nor_device(place: Path) -> None:
    os.mkfifo(place / "fifo")
    wrong = "is neither a file, a directory nor a block device; name one of these"
    assert refusal(place / "fifo") == wrong
    assert refusal("/dev/null") == wrong


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("size", [1, DATA, spill_size(1) - 1])
def test_too_small(size: int, existing: bool, place: Path) -> None:
    if existing:
        (place / "spill").touch(0o640)
    before = contents(place)
    assert "is too small for a chunk of 64.0 KiB; give it 1.1 MiB at least" in refusal(place / "spill", size)
    assert contents(place) == before


def test_one_extent_is_enough(place: Path) -> None:
    with SpillFile.open(str(place / "spill"), spill_size(1), CHUNK) as file:
        assert file.extents == 1


@pytest.mark.parametrize("name", ["spill", ""])
def test_more_than_the_disk_has(name: str, place: Path) -> None:
    text = refusal(place / name if name else place, 1 << 60)
    assert "1048576.0 TiB do not fit: its file system has " in text
    assert " free; give a smaller size or name a path on another disk" in text
    assert contents(place) == {}


@needs_root
def test_a_full_file_system(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "tmpfs", f"size={SIZE - 4096}") as small:
        assert "do not fit: its file system has" in refusal(small / "spill")
        assert contents(small) == {}
        (small / "spill").touch(0o600)
        assert "do not fit: its file system has" in refusal(small / "spill")
        assert (small / "spill").stat().st_size == 0
        refusal(small)
        with SpillFile.open(str(small / "spill"), spill_size(1), CHUNK):
            pass


def test_a_file_system_that_cannot_preallocate_so_much(place: Path) -> None:
    with limited(resource.RLIMIT_FSIZE, SIZE - 4096):
        wrong = "cannot be preallocated (File too large); name a path on another file system"
        assert refusal(place / "spill") == wrong
    assert contents(place) == {}


@needs_root
@pytest.mark.parametrize("ephemeral", [True, False])
def test_a_file_system_without_o_direct(ephemeral: bool, tmp_path: Path) -> None:
    with mounted(tmp_path / "ram", "ramfs") as ram:
        wrong = "its file system has no O_DIRECT (Invalid argument); choose a path on a local disk"
        assert refusal(ram / "spill", ephemeral=ephemeral).startswith(wrong)
        assert contents(ram) == {}
        assert refusal(ram).startswith(wrong)


@needs_root
def test_paths_that_another_user_may_not_write() -> None:
    # Not in pytest's own directories, which are the user's alone.
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        path = directory / "spill"
        path.touch(0o644)
        before = contents(directory)
        wrong = "cannot be written by user 65534 (Permission denied); change its owner or mode"
        with as_nobody():
            assert refusal(path).startswith(wrong)
            assert refusal(directory / "new").startswith(wrong)
            assert refusal(directory).startswith(wrong)
            assert refusal(directory / "new", ephemeral=True).startswith(wrong)
        assert contents(directory) == before
        path.chmod(0o666)
        with as_nobody():
            wrong = "others may read it, and its mode cannot be changed; chmod it 600"
            assert refusal(path) == wrong
        assert path.stat().st_size == 0


@pytest.mark.parametrize("content", [b"x", b"precious" * 1000, bytes(8 << 20)], ids=["x", "text", "zeros"])
def test_files_that_are_not_ours(content: bytes, place: Path) -> None:
    (place / "spill").write_bytes(content)
    before = contents(place)
    wrong = "is a file with content that is not GreenBoost's; name another path, or delete it first"
    assert refusal(place / "spill") == wrong
    assert contents(place) == before


def test_files_with_a_damaged_superblock(place: Path) -> None:
    block = bytearray(Superblock(CHUNK, 1, State.CLOSED, False).pack())
    block[20] ^= 1
    (place / "spill").write_bytes(bytes(block))
    assert refusal(place / "spill").startswith(
        "its superblock is damaged; delete the file, or wipe the device"
    )


@pytest.mark.usefixtures("impatient")
def test_a_file_in_use_by_another_daemon(place: Path) -> None:
    with SpillFile.open(str(place / "spill"), SIZE, CHUNK) as file:
        wrong = "is in use by this or another GreenBoost daemon; name another path, or take it out of use"
        assert refusal(place / "spill").startswith(wrong)
        assert (place / "spill").exists()
        assert superblock(place / "spill").generation == 1
    assert file.fd == -1


# Files that exist


def test_an_existing_file_is_kept(place: Path) -> None:
    path = place / "spill"
    path.touch(0o644)
    with SpillFile.open(str(path), SIZE, CHUNK):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == SIZE
    first = superblock(path)
    assert (first.state, first.generation, first.created) == (State.CLOSED, 1, False)

    with SpillFile.open(str(path), None, CHUNK) as file:
        assert not file.adopted
        assert file.extents == 4
    with SpillFile.open(str(path), spill_size(2), 2 * CHUNK) as file:
        assert file.extents == 1
        assert path.stat().st_size == SIZE  # a smaller size is no reason to cut it
    with SpillFile.open(str(path), spill_size(6), CHUNK) as file:
        assert file.extents == 6
    assert path.stat().st_size == spill_size(6)
    last = superblock(path)
    assert (last.generation, last.id, last.state) == (4, first.id, State.CLOSED)


def test_growing_that_fails_changes_nothing(place: Path) -> None:
    path = place / "spill"
    path.touch(0o600)
    SpillFile.open(str(path), SIZE, CHUNK).close()
    before = contents(place)
    refusal(path, 1 << 60)
    with limited(resource.RLIMIT_FSIZE, 2 * SIZE):
        refusal(path, 4 * SIZE)
    assert contents(place) == before


@pytest.mark.parametrize("created", [True, False])
def test_a_file_left_behind_by_a_killed_daemon(created: bool, place: Path) -> None:
    path = place / "spill"
    if not created:
        path.touch(0o600)
    program = f"""
        import os, signal
        from tierd.nvme.spillfile import SpillFile
        SpillFile.open({str(path)!r}, {SIZE}, {CHUNK})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert superblock(path).state is State.OPEN
    with SpillFile.open(str(path), SIZE, CHUNK) as file:
        assert file.adopted
        assert superblock(path).generation == 2
    assert path.exists() is not created  # what a daemon made, a daemon removes


# Block devices


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    backing = tmp_path / "backing"
    with open(backing, "wb") as file:
        file.truncate(8 << 20)
    with loop_device(backing) as name:
        yield name


@needs_loop
def test_a_blank_device_is_taken_and_known_again(device: str) -> None:
    with SpillFile.open(device, None, CHUNK) as file:
        assert file.extents == (7 << 20) // CHUNK
        assert not file.adopted
    assert superblock(device).state is State.CLOSED
    with SpillFile.open(device, SIZE, CHUNK) as file:
        assert file.extents == 4
        assert superblock(device).generation == 2
    assert os.path.exists(device)


@needs_loop
@pytest.mark.parametrize("offset", [0, 512, 4096, 65600, DATA - 1, (8 << 20) - 512])
def test_a_device_that_holds_something_is_refused(offset: int, device: str) -> None:
    with open(device, "r+b") as raw:
        raw.seek(offset)
        raw.write(b"\1")
    assert refusal(device, None).startswith("is a block device that holds something else")
    with open(device, "rb") as raw:
        assert sum(raw.read()) == 1


@needs_loop
@pytest.mark.skipif(
    shutil.which("mkfs.ext4") is None, reason="no mkfs.ext4: real file systems are NOT tested"
)
def test_a_device_with_a_file_system_is_refused(device: str) -> None:
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    assert refusal(device, None).startswith("is a block device that holds something else")


@needs_loop
def test_a_device_that_is_mounted_or_claimed(device: str) -> None:
    with open(os.open(device, os.O_RDONLY | os.O_EXCL), "rb"):
        assert refusal(device, None) == "is mounted or otherwise in use; name a device that is free"


@needs_loop
def test_a_device_that_is_too_small(device: str) -> None:
    with pytest.raises(
        SpillPathError, match=r"8.0 MiB is too small for a chunk of 16.0 MiB; give it 17.0 MiB"
    ):
        SpillFile.open(device, None, 16 << 20)

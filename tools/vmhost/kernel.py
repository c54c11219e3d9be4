# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels: Debian's packages, unpacked under build/vm/kernels/VERSION and never installed.

What modules are built with, the headers, is unpacked under build/vm/headers/VERSION once it is needed.

usage: python -m vmhost.kernel SERIES...      fetches what is missing, for example 6.1 6.12

apt downloads and verifies, with a sources list and a state of its own under build/vm/apt: this
system's sources, package lists and /boot stay as they are, and root is not needed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import BUILD, VmError, bzimage, status_of

SERIES = {"6.1": "bookworm", "6.12": "bookworm-backports"}
"""The kernels that are tested, and the Debian suite that each comes from: the oldest that is
supported, and the newest that Debian 12 has."""

KERNELS = BUILD / "kernels"
HEADERS = BUILD / "headers"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_HEADERS_PART = re.compile(r"linux-headers-.*-common|linux-kbuild-.*")
# Neither -cloud- (it lacks nearly all that is wanted here) nor -rt-, -unsigned or -dbg.
_PACKAGE = re.compile(r"linux-image-(\d[^-]*(?:-\d+)?-amd64)$")


@dataclass(frozen=True, slots=True)
class Kernel:
    version: str  #: as uname -r has it
    directory: Path  #: what was unpacked

    @property
    def image(self) -> Path:
        """What QEMU starts."""
        elf = self.directory / "vmlinux"
        return elf if elf.exists() else self.directory / "boot" / f"vmlinuz-{self.version}"

    @property
    def modules(self) -> Path:
        return self.directory / "lib" / "modules" / self.version


def find(wanted: str) -> Kernel:
    """The kernel of a series ("6.1"), of a version ("6.1.0-50-amd64") or in a .deb file.

    Fetched and unpacked if it is not there yet. Raises VmError.
    """
    if wanted.endswith(".deb"):
        with _locked():
            return _unpack(Path(wanted))
    kept = _kept(wanted)
    if kept is None:
        with _locked():
            kept = _kept(wanted) or _fetch(wanted)
    return kept


def _kept(wanted: str) -> Kernel | None:
    if "/" in wanted or wanted.startswith("."):
        raise VmError(f"{wanted!r} is no kernel version; say {' or '.join(SERIES)}, or name a .deb file")
    directory = (KERNELS / wanted).resolve()  # a series is a link to the version it was resolved to
    return Kernel(directory.name, directory) if directory.is_dir() else None


@contextmanager
def _locked() -> Iterator[None]:
    KERNELS.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(*command: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    except FileNotFoundError:
        raise VmError(f"{command[0]} is not installed; kernels come as Debian packages") from None
    if done.returncode:
        raise VmError(f"'{' '.join(command[:1])} ... {command[-1]}' failed:\n{done.stderr.strip()}")
    return done.stdout


def _fetch(wanted: str) -> Kernel:
    series = next((s for s in SERIES if wanted == s or wanted.startswith(s + ".")), None)
    if series is None:
        raise VmError(f"no kernel {wanted}: known are {', '.join(SERIES)}; others can come as a .deb file")
    apt = Apt(SERIES[series])
    versions = apt.versions(series)
    if wanted != series:
        versions = [version for version in versions if version == wanted]
    if not versions:
        raise VmError(f"{apt.suite} has no kernel {wanted}")
    version = versions[-1]
    kernel = _kept(version)
    if kernel is None:
        print(f"vm: fetching linux-image-{version} from {apt.suite}", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=KERNELS, prefix=".download-") as download:
            kernel = _unpack(apt.download(f"linux-image-{version}", Path(download)))
    if wanted == series:
        (KERNELS / series).unlink(missing_ok=True)
        (KERNELS / series).symlink_to(version)
    return kernel


def headers(kernel: Kernel) -> Path:
    """The directory to build modules for a kernel in. Fetched and unpacked if it is not there yet.

    Raises VmError.
    """
    tree = HEADERS / kernel.version
    build = tree / "usr" / "src" / f"linux-headers-{kernel.version}"
    if not build.exists():
        with _locked():
            if not build.exists():
                _fetch_headers(kernel.version, tree)
    return build


def _fetch_headers(version: str, tree: Path) -> None:
    suite = next((suite for series, suite in SERIES.items() if version.startswith(series + ".")), None)
    if suite is None:
        raise VmError(f"no headers for {version}: known are those of {', '.join(SERIES)}")
    apt = Apt(suite)
    package = f"linux-headers-{version}"
    try:
        # The others have what all flavours share, and the programs that a build runs.
        parts = [package, *(name for name in apt.depends(package) if _HEADERS_PART.fullmatch(name))]
    except VmError as error:
        raise VmError(
            f"{suite} has no {package}; if it has a newer build of the kernel, remove "
            f"{KERNELS / version}, so that this is fetched instead\n{error}"
        ) from error
    print(f"vm: fetching {', '.join(parts)} from {suite}", file=sys.stderr)
    HEADERS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HEADERS, prefix=".unpack-") as scratch:
        unpacked = Path(scratch) / "tree"
        for part in parts:
            with tempfile.TemporaryDirectory(dir=scratch) as download:
                run("dpkg-deb", "-x", str(apt.download(part, Path(download))), str(unpacked))
        shutil.rmtree(unpacked / "usr" / "share", ignore_errors=True)
        build = unpacked / "usr" / "src" / package
        # It names /usr/src, where nothing is installed.
        makefile = build / "Makefile"
        makefile.write_text(
            makefile.read_text().replace("/usr/src/", "$(dir $(lastword $(MAKEFILE_LIST)))../")
        )
        # Only for type information in modules, for which pahole would have to be there.
        (build / "vmlinux").unlink(missing_ok=True)
        shutil.rmtree(tree, ignore_errors=True)
        unpacked.rename(tree)


def unpack_source(into: Path, *files: str) -> Path:
    """Debian's source of the newest kernel here, or those files of it alone; its directory, under `into`.

    Fetches 150 MB. Raises VmError.
    """
    series, suite = list(SERIES.items())[-1]
    package = f"linux-source-{series}"
    print(f"vm: fetching {package} from {suite} (150 MB)", file=sys.stderr)
    run("dpkg-deb", "-x", str(Apt(suite).download(package, into)), str(into))
    archive = into / "usr" / "src" / f"{package}.tar.xz"
    # With --occurrence it stops reading after the last of them.
    only = ["--occurrence", *(f"{package}/{file}" for file in files)] if files else []
    run("tar", "-xf", str(archive), "-C", str(into), *only)
    return into / package


class Apt:
    """apt with one suite and nothing of this system's but its mirror."""

    def __init__(self, suite: str) -> None:
        self.suite = suite
        base = BUILD / "apt" / suite
        for directory in ("lists/partial", "cache/archives/partial"):
            (base / directory).mkdir(parents=True, exist_ok=True)
        sources = base / "sources.list"
        if not _KEYRING.exists():
            raise VmError(f"{_KEYRING} is not there: install the package debian-archive-keyring")
        sources.write_text(f"deb [arch=amd64 signed-by={_KEYRING}] {_mirror()} {suite} main\n")
        options = {
            "Dir::Etc::sourcelist": str(sources),
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": str(base / "lists"),
            "Dir::State::status": "/dev/null",
            "Dir::Cache": str(base / "cache"),
            # The user that apt downloads as otherwise need not be able to get into a checkout.
            "APT::Sandbox::User": "root",
            "APT::Architecture": "amd64",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        self._options = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        run("apt-get", *self._options, "-q", "update")

    def versions(self, series: str) -> list[str]:
        """Oldest first."""
        names = run("apt-cache", *self._options, "pkgnames", f"linux-image-{series}.").split()
        matches = (_PACKAGE.fullmatch(name) for name in names)
        return sorted((match[1] for match in matches if match), key=_order)

    def depends(self, package: str) -> list[str]:
        lines = run("apt-cache", *self._options, "depends", "--important", package).splitlines()
        return [line.split()[-1] for line in lines if "Depends:" in line]

    def download(self, package: str, into: Path) -> Path:
        run("apt-get", *self._options, "-q", "download", package, cwd=into)
        [file] = into.glob("*.deb")
        return file


def _order(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _mirror() -> str:
    """The Debian mirror that this system uses."""
    if given := os.environ.get("GREENBOOST_VM_MIRROR"):
        return given
    targets = run(
        "apt-get", "indextargets", "--format", "$(REPO_URI)|$(LABEL)|$(CODENAME)", "Created-By: Packages"
    )
    # A label is known only once the lists are there; a mirror of Debian's is called so everywhere.
    for line in targets.splitlines():
        uri, label, _ = line.split("|")
        if label == "Debian" or (label.startswith("$") and re.search(r"/debian/?$", uri)):
            return uri
    raise VmError(
        "kernels come from Debian, and none of this system's package sources is Debian's; "
        "set GREENBOOST_VM_MIRROR to the address of a mirror, or use --kernel FILE.deb"
    )


def _unpack(package: Path) -> Kernel:
    with tempfile.TemporaryDirectory(dir=KERNELS, prefix=".unpack-") as scratch:
        tree = Path(scratch) / "tree"
        run("dpkg-deb", "-x", str(package), str(tree))
        shutil.rmtree(tree / "usr" / "share", ignore_errors=True)
        images = sorted((tree / "boot").glob("vmlinuz-*"))
        if len(images) != 1:
            raise VmError(f"{package} is no kernel package: it holds {len(images)} of boot/vmlinuz-*")
        version = images[0].name.removeprefix("vmlinuz-")
        kernel = Kernel(version, tree)
        if not kernel.modules.is_dir():
            raise VmError(f"{package} has no modules in /lib/modules/{version}")
        run("depmod", "-b", str(tree), version)
        elf = bzimage.unpack(images[0].read_bytes())
        if elf is not None:
            (tree / "vmlinux").write_bytes(elf)
        home = KERNELS / version
        if home.exists():
            shutil.rmtree(home)
        tree.rename(home)
    return Kernel(version, home)


def main() -> None:
    for one in sys.argv[1:]:
        find(one)


if __name__ == "__main__":
    sys.exit(status_of(main))

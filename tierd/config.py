# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's settings: a TOML file, then GREENBOOST_* variables, then flags; the later ones win.

    [tierd]
    socket = "/run/greenboost/tierd.sock"
    chunk = "16MiB"            # power of two, 2MiB to 64MiB
    view = "/run/greenboost/view"
    paging = "auto"            # of programs that are told nothing else: "auto", "mapped", "off"
    [ram]
    limit = "80%"              # of what is available when the daemon starts
    arena = "1GiB"             # whole chunks
    source = "auto"            # what arenas are made of: "module", "memfd", or the module's if it is there
    reserve = "5%"             # RAM that stays available to others, where the module does not say; 0: any
    [[spill]]
    path = "/mnt/nvme0/greenboost.spill"
    size = "200GiB"
    weight = 1.0               # multiplies the share of the traffic that its speed gives it
    encrypt = false            # with a key that is never written anywhere
    daily_writes = "500GB"     # what should be written to it a day at most; none if not given
    deadline = 10              # seconds after which a device that does not answer is set aside
    poll = "none"              # "io" or "sq": poll for completions, or for submissions

Every refusal names where the value stands: ``FILE:LINE:``, the variable, or the flag.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import memory, tomlfile
from .model import MAX_CHUNK, MIN_CHUNK, PAGING_MODES, POLLS, SizeError, SpillOptions, format_size, parse_size

__all__ = [
    "ARENA_SOURCES",
    "DEFAULT_CHUNK",
    "DEFAULT_FILE",
    "MIN_RAM_CHUNKS",
    "Config",
    "ConfigError",
    "SpillSpec",
    "check",
    "default_socket",
    "load",
    "parse_spill",
    "spill_options",
]

DEFAULT_FILE = Path("/etc/greenboost/tierd.toml")
DEFAULT_CHUNK = 16 << 20
ARENA_SOURCES = ("auto", "module", "memfd")
MAX_DEFAULT_ARENA = 1 << 30
MIN_RAM_CHUNKS = 4
"""Chunks that T2 must hold: fewer leave no room to move chunks between tiers."""

_NAMES = ("socket", "chunk", "view", "ram", "arena", "arena_source", "reserve", "spill", "paging")
_VARIABLES = {name: f"GREENBOOST_{name.upper()}" for name in _NAMES}
_FLAGS = {name: f"--{name.replace('_', '-')}" for name in _NAMES}
_TABLES = {
    "tierd": {"socket": "socket", "chunk": "chunk", "view": "view", "paging": "paging"},
    "ram": {"limit": "ram", "arena": "arena", "source": "arena_source", "reserve": "reserve"},
}
_SPILL_KEYS = ("path", "size", "weight", "encrypt", "daily_writes", "deadline", "poll")
_MAX_WEIGHT = 1000.0
_MAX_DEADLINE = 3600.0


class ConfigError(Exception):
    """A setting that cannot be; the text says where it stands, what is wrong and what is allowed."""


@dataclass(frozen=True, slots=True)
class SpillSpec:
    """One spill path as it was asked for."""

    path: Path
    size: int | None  #: bytes; None: what the device has, or what the file system can spare
    where: str  #: where it was asked for, for messages
    options: SpillOptions = field(default_factory=SpillOptions)


@dataclass(frozen=True, slots=True)
class Config:
    """The daemon's settings, checked. Sizes in bytes."""

    socket: Path
    chunk: int
    ram: int  #: T2's limit
    arena: int  #: bytes of one arena: whole chunks, at most `ram`
    spill: tuple[SpillSpec, ...]
    view: Path | None
    arena_source: str = "auto"  #: one of ARENA_SOURCES
    reserve: int | None = None  #: bytes of RAM to be left available to others; None: see watermark
    paging: str = "auto"  #: one of PAGING_MODES
    chunk_source: str = "default"  #: where `chunk` was said


@dataclass(frozen=True, slots=True)
class _Setting:
    value: object
    where: str


def load(
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Config:
    """The settings from `file` (None: DEFAULT_FILE if there is one), `environ` and `flags`.

    Keys of `flags` are Config's fields; None counts as not given, "spill" is a list of PATH[:SIZE].
    Raises ConfigError.
    """
    environ = os.environ if environ is None else environ
    settings: dict[str, _Setting] = {}
    spill: list[SpillSpec] = []
    if file is not None or DEFAULT_FILE.exists():
        spill = _from_file(file or DEFAULT_FILE, settings)
    given = {name: environ[variable] for name, variable in _VARIABLES.items() if environ.get(variable)}
    spill = _overlay(settings, given, _VARIABLES, spill)
    given_flags = {name: value for name, value in (flags or {}).items() if value is not None}
    if unknown := given_flags.keys() - _VARIABLES:
        raise ConfigError(f"--{min(unknown)}: no such setting{_nearest(min(unknown), _VARIABLES)}")
    spill = _overlay(settings, given_flags, _FLAGS, spill)
    return _checked(settings, spill, environ)


def check(file: Path) -> Config:
    """The settings of `file` alone, as ``greenboost config check`` wants them. Raises ConfigError."""
    return load(file, {}, {})


# Reading


def _nearest(name: str, known: Iterable[str]) -> str:
    known = tuple(known)
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def _from_file(path: Path, settings: dict[str, _Setting]) -> list[SpillSpec]:
    try:
        file = tomlfile.read(path)
    except tomlfile.TomlError as error:
        raise ConfigError(str(error)) from None
    for table, content in file.data.items():
        if table == "spill":
            continue
        if table not in _TABLES:
            raise ConfigError(
                f"{file.where(table)}: [{table}] is not known{_nearest(table, [*_TABLES, 'spill'])}"
            )
        if not isinstance(content, dict):
            raise ConfigError(f"{file.where(table)}: {table} must be a table: [{table}]")
        for key, value in content.items():
            where = file.where(table, key)
            if key not in _TABLES[table]:
                raise ConfigError(
                    f"{where}: {key!r} is not known in [{table}]{_nearest(key, _TABLES[table])}"
                )
            settings[_TABLES[table][key]] = _Setting(value, where)
    return _spill_from_file(file)


def _spill_from_file(file: tomlfile.TomlFile) -> list[SpillSpec]:
    entries = file.data.get("spill", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{file.where('spill')}: spill must be written as [[spill]], once for each path")
    specs = []
    for index, entry in enumerate(entries):
        for key in entry:
            if key not in _SPILL_KEYS:
                where = file.where("spill", index, key)
                raise ConfigError(f"{where}: {key!r} is not known in [[spill]]{_nearest(key, _SPILL_KEYS)}")
        if "path" not in entry:
            raise ConfigError(f"{file.where('spill', index)}: [[spill]] needs a path")
        where = file.where("spill", index, "path")
        path = _path(_Setting(entry["path"], where))
        size = None
        if "size" in entry:
            size = _size(_Setting(entry["size"], file.where("spill", index, "size")))
        given = {
            key: _Setting(value, file.where("spill", index, key))
            for key, value in entry.items()
            if key not in ("path", "size")
        }
        specs.append(SpillSpec(path, size, where, _options(given)))
    return specs


def spill_options(given: Mapping[str, object], where: Mapping[str, str]) -> SpillOptions:
    """How a spill path is to be used: keys as in [[spill]]. Raises ConfigError, naming `where`."""
    return _options({key: _Setting(value, where[key]) for key, value in given.items()})


def _options(given: Mapping[str, _Setting]) -> SpillOptions:
    options = SpillOptions()
    for key, setting in given.items():
        value, where = setting.value, setting.where
        match key:
            case "weight":
                options = replace(options, weight=_number(setting, 0.001, _MAX_WEIGHT))
            case "deadline":
                options = replace(options, deadline=_number(setting, 0.1, _MAX_DEADLINE))
            case "encrypt":
                if not isinstance(value, bool):
                    raise ConfigError(f"{where}: encrypt is true or false, not {value!r}")
                options = replace(options, encrypt=value)
            case "daily_writes":
                options = replace(options, daily_writes=_size(setting))
            case "poll":
                if not isinstance(value, str) or value not in POLLS:
                    raise ConfigError(f"{where}: poll is one of {', '.join(POLLS)}, not {value!r}")
                options = replace(options, poll=POLLS[value])
    return options


def _number(setting: _Setting, low: float, high: float) -> float:
    value = setting.value
    # TOML has inf and nan, which pass no comparison with both bounds.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{setting.where}: a number from {low:g} to {high:g} is wanted, not {value!r}")
    return float(value)


def _overlay(
    settings: dict[str, _Setting],
    given: Mapping[str, object],
    names: Mapping[str, str],
    spill: list[SpillSpec],
) -> list[SpillSpec]:
    """Put `given` over `settings`; the spill paths that hold then."""
    for name, value in given.items():
        if name != "spill":
            settings[name] = _Setting(value, names[name])
            continue
        # A comma separates paths in the variable; a flag is repeated instead.
        texts: Sequence[str] = value.split(",") if isinstance(value, str) else value  # type: ignore[assignment]
        if texts:
            spill = [parse_spill(text, names[name]) for text in texts]
    return spill


def parse_spill(text: str, where: str = "--spill") -> SpillSpec:
    """``PATH[:SIZE]``: what follows the last colon is a size if it looks like one, 12 or 12abc.

    A path that ends like that needs its size given. Raises ConfigError.
    """
    path, colon, size = text.rpartition(":")
    if not colon or not re.fullmatch(r"\d+(\.\d+)?\s*[A-Za-z%]*", size):
        return SpillSpec(_path(_Setting(text, where), relative=True), None, where)
    try:
        return SpillSpec(_path(_Setting(path, where), relative=True), parse_size(size), where)
    except SizeError as error:
        raise ConfigError(f"{where}: {text!r}: {error}") from None


def _path(setting: _Setting, *, relative: bool = False) -> Path:
    value, where = setting.value, setting.where
    if isinstance(value, Path):
        value = os.fspath(value)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where}: a path is wanted, not {value!r}")
    if "\0" in value:
        raise ConfigError(f"{where}: {value!r}: a path has no NUL")
    try:
        value.encode()
    except UnicodeEncodeError:  # status and the view could not show it
        raise ConfigError(f"{where}: {value!r}: the path is not UTF-8") from None
    if not relative and not os.path.isabs(value):
        raise ConfigError(f"{where}: {value!r}: the path must begin with /")
    return Path(os.path.abspath(value))


def _size(setting: _Setting, *, whole: int | None = None) -> int:
    value, where = setting.value, setting.where
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ConfigError(f'{where}: a size is wanted, like "12GiB", not {value!r}')
    try:
        size = parse_size(str(value), whole=whole)
    except SizeError as error:
        raise ConfigError(f"{where}: {error}") from None
    if size >= 1 << 63:
        raise ConfigError(f"{where}: {value!r} is larger than any memory or device")
    return size


# Checking


def _checked(settings: Mapping[str, _Setting], spill: list[SpillSpec], environ: Mapping[str, str]) -> Config:
    chunk = _chunk(settings.get("chunk"))
    ram = _ram(settings.get("ram"), chunk)
    arena = _arena(settings.get("arena"), ram, chunk)
    socket = default_socket(environ)
    if "socket" in settings:
        socket = _path(settings["socket"], relative=_may_be_relative(settings["socket"]))
        if len(os.fsencode(socket)) > 107:
            raise ConfigError(f"{settings['socket'].where}: {socket}: a socket's path may have 107 bytes")
    view = None
    if "view" in settings:
        view = _path(settings["view"], relative=_may_be_relative(settings["view"]))
    seen: dict[Path, SpillSpec] = {}
    for spec in spill:
        if spec.path in seen:
            raise ConfigError(f"{spec.where}: {spec.path} is a spill path already ({seen[spec.path].where})")
        if spec.size is not None and spec.size < chunk:
            raise ConfigError(
                f"{spec.where}: {spec.path}: {format_size(spec.size)} is too small, "
                f"one chunk is {format_size(chunk)}"
            )
        seen[spec.path] = spec
    return Config(
        socket,
        chunk,
        ram,
        arena,
        tuple(spill),
        view,
        arena_source=_one_of(settings.get("arena_source"), ARENA_SOURCES, "arenas come from"),
        reserve=_reserve(settings.get("reserve")),
        paging=_one_of(settings.get("paging"), PAGING_MODES, "paging is"),
        chunk_source=settings["chunk"].where if "chunk" in settings else "default",
    )


def _may_be_relative(setting: _Setting) -> bool:
    """Whether it was typed by somebody who knows the current directory, unlike what a file says."""
    return setting.where.startswith(("--", "GREENBOOST_"))


def _chunk(setting: _Setting | None) -> int:
    if setting is None:
        return DEFAULT_CHUNK
    chunk = _size(setting)
    if not MIN_CHUNK <= chunk <= MAX_CHUNK or chunk & (chunk - 1):
        raise ConfigError(
            f"{setting.where}: a chunk of {format_size(chunk)} cannot be: "
            f"a power of two from {format_size(MIN_CHUNK)} to {format_size(MAX_CHUNK)} is wanted"
        )
    return chunk


def _ram(setting: _Setting | None, chunk: int) -> int:
    total, available = _memory()
    least = MIN_RAM_CHUNKS * chunk
    if setting is None:
        return max(available // 2, least)
    ram = _size(setting, whole=available)
    if ram < least:
        raise ConfigError(
            f"{setting.where}: {format_size(ram)} of RAM is too little: at least "
            f"{MIN_RAM_CHUNKS} chunks, {format_size(least)}, are wanted"
        )
    if ram > total:
        raise ConfigError(
            f"{setting.where}: {format_size(ram)} is more RAM than this machine has ({format_size(total)})"
        )
    return ram


def _arena(setting: _Setting | None, ram: int, chunk: int) -> int:
    if setting is None:
        most = max(min(ram // 8, MAX_DEFAULT_ARENA) // chunk, 1)
        return chunk * _part(ram // chunk, most)
    arena = _size(setting)
    if arena % chunk or not chunk <= arena <= ram:
        raise ConfigError(
            f"{setting.where}: an arena of {format_size(arena)} cannot be: a multiple of the chunk, "
            f"{format_size(chunk)}, up to the RAM limit, {format_size(ram)}, is wanted"
        )
    return arena


def _part(whole: int, most: int) -> int:
    """The largest size of parts, from half of `most` on, that leaves next to nothing of the whole over."""
    sizes = range(most, (most - 1) // 2, -1)
    return next((size for size in sizes if whole % size <= whole // 64), min(sizes, key=whole.__mod__))


def _memory() -> tuple[int, int]:
    """Bytes of RAM in all, and available now."""
    return memory.machine().total, memory.available()


def _one_of(setting: _Setting | None, choices: tuple[str, ...], what: str) -> str:
    """The first of `choices` where nothing is set; `what` begins the complaint: "arenas come from"."""
    if setting is None:
        return choices[0]
    if not isinstance(setting.value, str) or setting.value not in choices:
        raise ConfigError(f"{setting.where}: {what} one of {', '.join(choices)}, not {setting.value!r}")
    return setting.value


def _reserve(setting: _Setting | None) -> int | None:
    if setting is None:
        return None
    total, _ = _memory()
    reserve = _size(setting, whole=total)
    if reserve > total:
        raise ConfigError(
            f"{setting.where}: {format_size(reserve)} cannot be reserved: "
            f"this machine has {format_size(total)} of RAM"
        )
    return reserve


def default_socket(environ: Mapping[str, str] | None = None) -> Path:
    """Where a daemon of this user listens if nothing else is said."""
    environ = os.environ if environ is None else environ
    if os.geteuid() == 0:
        return Path("/run/greenboost/tierd.sock")
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return Path(runtime, "greenboost", "tierd.sock")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings: what wins, what is refused, and where the refusal points."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tierd import config, tomlfile
from tierd.config import ConfigError, SpillSpec
from tierd.model import SpillOptions

MIB, GIB = 1 << 20, 1 << 30


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """64 GiB of RAM, 40 available, and no configuration of its own."""
    monkeypatch.setattr(config, "_memory", lambda: (64 * GIB, 40 * GIB))
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "none.toml")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "t.toml"
    path.write_text(text)
    return path


def test_defaults() -> None:
    settings = config.load(None, {}, {})
    assert settings.chunk == 16 * MIB
    assert settings.ram == 20 * GIB
    assert settings.arena == GIB
    assert settings.spill == ()
    assert settings.view is None


def test_the_machine_is_asked_for_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    total, available = config._memory()
    assert 0 < available <= total
    assert total >= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE") // 2


def test_a_whole_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [tierd]
        socket = "/run/x/tierd.sock"
        chunk = "2MiB"
        view = "/run/x/view"
        paging = "mapped"
        [ram]
        limit = "80%"
        arena = 8388608
        [[spill]]
        path = "/mnt/a"
        size = "200GiB"
        [[spill]]
        path = "/dev/nvme1n1"
        """,
    )
    settings = config.check(path)
    assert settings == config.Config(
        socket=Path("/run/x/tierd.sock"),
        chunk=2 * MIB,
        ram=32 * GIB,
        arena=8 * MIB,
        spill=(
            SpillSpec(Path("/mnt/a"), 200 * GIB, f"{path}:11"),
            SpillSpec(Path("/dev/nvme1n1"), None, f"{path}:14"),
        ),
        view=Path("/run/x/view"),
        chunk_source=f"{path}:4",
        paging="mapped",
    )


def test_the_default_file_is_read_if_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", write(tmp_path, '[tierd]\nchunk = "4MiB"'))
    assert config.load(None, {}, {}).chunk == 4 * MIB


def test_variables_win_over_the_file_and_flags_over_both(tmp_path: Path) -> None:
    path = write(tmp_path, '[tierd]\nchunk = "2MiB"\n[ram]\nlimit = "1GiB"\n[[spill]]\npath = "/a"')
    variables = {"GREENBOOST_CHUNK": "4MiB", "GREENBOOST_RAM": "2GiB", "GREENBOOST_SPILL": "/b:1GiB,/c"}
    flags = {"chunk": "8MiB", "spill": ["/d:5GiB"], "ram": None, "view": None}

    assert config.load(path, {}, {}).chunk == 2 * MIB
    settings = config.load(path, variables, {})
    assert (settings.chunk, settings.ram) == (4 * MIB, 2 * GIB)
    assert [str(spec.path) for spec in settings.spill] == ["/b", "/c"]
    settings = config.load(path, variables, flags)
    assert (settings.chunk, settings.ram) == (8 * MIB, 2 * GIB)
    assert settings.spill == (SpillSpec(Path("/d"), 5 * GIB, "--spill"),)
    # Nothing given leaves what is.
    assert len(config.load(path, variables, {"spill": []}).spill) == 2
    assert config.load(path, {"GREENBOOST_CHUNK": ""}, {}).chunk == 2 * MIB


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('[tierd]\nchnk = "2MiB"', 2, "'chnk' is not known in [tierd]; did you mean 'chunk'?"),
        ("[tierd]\nzzz = 1", 2, "'zzz' is not known in [tierd]; known are socket, chunk, view"),
        ("\n[spil]\n", 2, "[spil] is not known; did you mean 'spill'?"),
        (
            "[[spill]]\npath='/a'\n[[spill]]\nsiz = 1\npath='/b'",
            4,
            "'siz' is not known in [[spill]]; did you",
        ),
        ("chunk = 3", 1, "[chunk] is not known"),
        ("tierd = 3", 1, "tierd must be a table: [tierd]"),
        ("\n[spill]\npath='/a'", 2, "spill must be written as [[spill]]"),
        ("spill = ['/a']", 1, "spill must be written as [[spill]]"),
        ("# one\n[[spill]]\nsize='1GiB'", 2, "[[spill]] needs a path"),
        ("[[spill]]\npath=''", 2, "a path is wanted, not ''"),
        ("[[spill]]\npath=7", 2, "a path is wanted, not 7"),
        ("[[spill]]\npath='a/b'", 2, "'a/b': the path must begin with /"),
        ("[[spill]]\npath='/a\\u0000'".replace("'", '"'), 2, "a path has no NUL"),
        ("[[spill]]\npath='/a'\nsize='80%'", 3, "a percentage has no meaning here"),
        ("[[spill]]\npath='/a'\nsize='5 apples'", 3, "unknown unit 'apples'"),
        ("[[spill]]\npath='/a'\nsize='1MiB'", 2, "/a: 1.0 MiB is too small, one chunk is 16.0 MiB"),
        ("[[spill]]\npath='/a'\nweight=0", 3, "a number from 0.001 to 1000 is wanted, not 0"),
        ("[[spill]]\npath='/a'\nweight=nan", 3, "a number from 0.001 to 1000 is wanted, not nan"),
        ("[[spill]]\npath='/a'\ndeadline='soon'", 3, "a number from 0.1 to 3600 is wanted, not 'soon'"),
        ("[[spill]]\npath='/a'\nencrypt=1", 3, "encrypt is true or false, not 1"),
        ("[[spill]]\npath='/a'\npoll='fast'", 3, "poll is one of none, io, sq, not 'fast'"),
        ("[[spill]]\npath='/a'\ndaily_writes='much'", 3, "'much' is not a size"),
        ("[[spill]]\npath='/a'\n[[spill]]\npath='/x/../a'", 4, "/a is a spill path already"),
        (
            "[tierd]\nchunk = '3MiB'",
            2,
            "a chunk of 3.0 MiB cannot be: a power of two from 2.0 MiB to 64.0 MiB",
        ),
        ("[tierd]\nchunk = '1MiB'", 2, "a chunk of 1.0 MiB cannot be"),
        ("[tierd]\nchunk = '128MiB'", 2, "a chunk of 128.0 MiB cannot be"),
        ("[tierd]\nchunk = true", 2, 'a size is wanted, like "12GiB", not True'),
        ("[tierd]\nchunk = 2.5", 2, "a size is wanted"),
        ("[tierd]\nchunk = -2", 2, "'-2' is not a size"),
        ("[tierd]\nsocket = 's'", 2, "'s': the path must begin with /"),
        ("[tierd]\nsocket = '/" + "s" * 107 + "'", 2, "a socket's path may have 107 bytes"),
        ("[ram]\nlimit = '101%'", 2, "'101%' is more than the whole"),
        ("[ram]\nlimit = '65GiB'", 2, "65.0 GiB is more RAM than this machine has (64.0 GiB)"),
        ("[ram]\nlimit = '99999999999GiB'", 2, "is larger than any memory or device"),
        (
            "[ram]\nlimit = '63MiB'",
            2,
            "63.0 MiB of RAM is too little: at least 4 chunks, 64.0 MiB, are wanted",
        ),
        (
            "[ram]\narena = '17MiB'",
            2,
            "an arena of 17.0 MiB cannot be: a multiple of the chunk, 16.0 MiB, up",
        ),
        ("[ram]\nlimit='64MiB'\narena = '80MiB'", 3, "an arena of 80.0 MiB cannot be"),
        ("[ram]\narena = 0", 2, "an arena of 0 B cannot be"),
        ("[ram]\nlimit = ", 2, "not TOML: Invalid value"),
        ("[ram]\nlimit = '1GiB'\nlimit = '2GiB'", 3, "not TOML: Cannot overwrite a value"),
        ("[ram]\nlimit = '''1GiB", 2, "not TOML: "),
    ],
)
def test_each_refusal_names_its_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as refusal:
        config.check(path)
    assert str(refusal.value).startswith(f"{path}:{line}: ")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 5000, "nested deeper than any configuration is"),
        ("[ram]\nlimit = " + "9" * 5000, "a number has more digits than any size"),
    ],
)
def test_what_the_parser_cannot_take_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as refusal:
        config.check(path)
    assert str(refusal.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("variables", "flags", "message"),
    [
        ({"GREENBOOST_CHUNK": "3MiB"}, {}, "GREENBOOST_CHUNK: a chunk of 3.0 MiB cannot be"),
        ({"GREENBOOST_SPILL": "/a:1GiB,"}, {}, "GREENBOOST_SPILL: a path is wanted, not ''"),
        ({}, {"chunk": "x"}, "--chunk: 'x' is not a size; write it like"),
        ({}, {"ram": "120%"}, "--ram: '120%' is more than the whole"),
        ({}, {"spill": ["/a:12Gig"]}, "--spill: '/a:12Gig': '12Gig' has an unknown unit"),
        ({}, {"spill": ["/a:50%"]}, "--spill: '/a:50%': '50%': a percentage has no meaning here"),
        ({}, {"spill": ["/a", "/a"]}, "--spill: /a is a spill path already (--spill)"),
        ({}, {"spill": [":1GiB"]}, "--spill: a path is wanted, not ''"),
        ({}, {"spill": ["/\udcff:1GiB"]}, r"--spill: '/\udcff': the path is not UTF-8"),
        ({}, {"chunck": "2MiB"}, "--chunck: no such setting; did you mean 'chunk'?"),
    ],
)
def test_refusals_name_the_variable_or_flag(
    variables: Mapping[str, str], flags: Mapping[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        config.load(None, variables, flags)
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "path", "size"),
    [
        ("/a:1GiB", "/a", GIB),
        ("/a", "/a", None),
        ("/a:b", "/a:b", None),
        ("/a:b:1.5MiB", "/a:b", 3 * MIB // 2),
        ("/dev/disk/by-path/pci-0000:01:00.0-nvme-1", "/dev/disk/by-path/pci-0000:01:00.0-nvme-1", None),
        ("/a:1/b", "/a:1/b", None),
        ("/a:4096:64MiB", "/a:4096", 64 * MIB),
    ],
)
def test_spill_flag(text: str, path: str, size: int | None) -> None:
    assert config.parse_spill(text) == SpillSpec(Path(path), size, "--spill")


def test_relative_paths_of_flags_are_of_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = config.load(None, {"GREENBOOST_VIEW": "v"}, {"socket": "s", "spill": ["x:1GiB"]})
    assert settings.socket == tmp_path / "s"
    assert settings.view == tmp_path / "v"
    assert settings.spill[0].path == tmp_path / "x"


def test_arena_default_is_an_eighth_at_most_and_leaves_little_of_ram_over() -> None:
    def arena(ram: str, chunk: str = "2MiB") -> int:
        return config.load(None, {}, {"ram": ram, "chunk": chunk}).arena

    assert arena("16MiB") == 2 * MIB
    assert arena("8MiB") == 2 * MIB
    assert arena("14MiB") == 2 * MIB
    assert arena("56MiB") == 4 * MIB
    assert arena("58MiB") == 4 * MIB  # 2 MiB left over, with 6 MiB four
    assert arena("34MiB") == 2 * MIB
    assert arena("32GiB") == GIB
    assert arena("32728MiB") == GIB - 2 * MIB  # 24 MiB left over
    assert arena("8128MiB", "64MiB") == 14 * 64 * MIB  # one chunk left over, with 15 seven


def test_ram_default_holds_some_chunks_even_where_little_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "_memory", lambda: (64 * GIB, 10 * MIB))
    assert config.load(None, {}, {}).ram == 4 * 16 * MIB


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml: cannot be read: No such file"):
        config.check(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        config.check(tmp_path)
    (tmp_path / "b").write_bytes(b"[ram]\n\xff")
    with pytest.raises(ConfigError, match="b:2: not UTF-8"):
        config.check(tmp_path / "b")
    (tmp_path / "c").write_text("#" * (tomlfile.MAX_FILE + 1))
    with pytest.raises(ConfigError, match="larger than 64 KiB"):
        config.check(tmp_path / "c")
    assert config.check(Path(os.devnull)).spill == ()


def test_lines_are_found_however_the_key_is_written(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'a."b c" = 1  # a.x = 2\n'
        "\n"
        'text = """\n'
        "y = 5\n"
        '"""\n'
        "y = [\n"
        "  1,\n"
        "]\n"
        "inline = { p = 1, q.r = 2 }\n"
        "[[s]]\n"
        "k = 1\n"
        "[[s]]\n"
        "k = 2\r\n",
    )
    file = tomlfile.read(path)
    found = {
        key: file.where(*key).removeprefix(f"{path}:")
        for key in (
            ("a", "b c"),
            ("text",),
            ("y",),
            ("inline", "q", "r"),
            ("s", 0, "k"),
            ("s", 1),
            ("s", 1, "k"),
        )
    }
    assert list(found.values()) == ["1", "3", "6", "9", "11", "12", "13"]
    assert file.where("inline", "nothing") == f"{path}:9"
    assert file.where("nothing") == f"{path}:1"


def test_default_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert config.default_socket({"XDG_RUNTIME_DIR": "/x"}) == Path("/run/greenboost/tierd.sock")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert config.default_socket({"XDG_RUNTIME_DIR": "/x"}) == Path("/x/greenboost/tierd.sock")
    assert config.default_socket({}) == Path("/run/user/1000/greenboost/tierd.sock")


def test_how_a_spill_path_is_used(tmp_path: Path) -> None:
    text = """
        [[spill]]
        path = "/a"
        weight = 2
        encrypt = true
        daily_writes = "500GB"
        deadline = 2.5
        poll = "sq"
        [[spill]]
        path = "/b"
    """
    first, second = config.check(write(tmp_path, text)).spill
    assert first.options == SpillOptions(2.0, True, 500 * 1000**3, 2.5, "sq")
    assert second.options == SpillOptions()


def test_where_ram_comes_from_and_what_is_left(tmp_path: Path) -> None:
    file = write(tmp_path, '[ram]\nsource = "memfd"\nreserve = "10%"\n')
    settings = config.load(file, {}, {})
    assert (settings.arena_source, settings.reserve) == ("memfd", 64 * GIB // 10)
    environ = {"GREENBOOST_ARENA_SOURCE": "module", "GREENBOOST_RESERVE": "2GiB"}
    settings = config.load(file, environ, {})
    assert (settings.arena_source, settings.reserve) == ("module", 2 * GIB)
    settings = config.load(file, environ, {"arena_source": "auto", "reserve": "0"})
    assert (settings.arena_source, settings.reserve) == ("auto", 0)
    assert config.load(None, {}, {}).reserve is None


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"arena_source": "disk"}, "--arena-source: arenas come from one of auto, module, memfd, not 'disk'"),
        ({"reserve": "65GiB"}, "--reserve: 65.0 GiB cannot be reserved: this machine has 64.0 GiB of RAM"),
        ({"reserve": "much"}, "--reserve: 'much' is not a size"),
    ],
)
def test_what_cannot_be_left(flags: dict[str, object], says: str) -> None:
    with pytest.raises(config.ConfigError) as refused:
        config.load(None, {}, flags)
    assert says in str(refused.value)

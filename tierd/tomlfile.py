# SPDX-License-Identifier: GPL-2.0-or-later
"""A TOML file with the line of each key, which tomllib does not tell."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MAX_FILE", "TomlError", "TomlFile", "read"]

MAX_FILE = 64 << 10
"""Bytes of the largest file that is read: lines are found in quadratic time."""

Key = tuple[str | int, ...]


class TomlError(Exception):
    """The file cannot be read or is not TOML; the text begins with FILE: or FILE:LINE:."""


@dataclass(frozen=True, slots=True)
class TomlFile:
    """What a file says, and the line (from 1) where the statement begins that first names a key."""

    path: Path
    data: dict[str, Any]
    lines: dict[Key, int]

    def where(self, *key: str | int) -> str:
        """``FILE:LINE`` of a key, such as ``where("spill", 0, "path")``, or of the nearest one above."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.lines:
                return f"{self.path}:{self.lines[key[:length]]}"
        return f"{self.path}:1"


def read(path: Path) -> TomlFile:
    """Read and parse `path`. Raises TomlError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
    except OSError as error:
        raise TomlError(f"{path}: cannot be read: {error.strerror}") from None
    if len(raw) > MAX_FILE:
        raise TomlError(f"{path}: larger than {MAX_FILE >> 10} KiB, which no configuration is")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise TomlError(f"{path}:{line}: not UTF-8, which TOML must be") from None
    try:
        data, lines = tomllib.loads(text), _lines(text)
    except tomllib.TOMLDecodeError as error:
        raise TomlError(_syntax(path, text, error)) from None
    except RecursionError:
        raise TomlError(f"{path}: nested deeper than any configuration is") from None
    except ValueError:  # of int(), which tomllib lets through
        raise TomlError(f"{path}: a number has more digits than any size") from None
    return TomlFile(path, data, lines)


def _syntax(path: Path, text: str, error: tomllib.TOMLDecodeError) -> str:
    message = str(error)
    at = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)", message)
    line = int(at[1]) if at and at[1] else max(1, text.rstrip("\n").count("\n") + 1)
    return f"{path}:{line}: not TOML: {message[: at.start()] if at else message}"


def _lines(text: str) -> dict[Key, int]:
    """The line of each key.

    A prefix of the file that ends between two statements is itself TOML, and one that ends within a
    statement is not. So the parser itself tells where statements begin, whatever quoting, dotted
    keys, inline tables and multi-line values are made of; a second parser here would only differ.
    """
    lines: dict[Key, int] = {}
    begins, prefix = 1, ""
    for number, line in enumerate(text.split("\n"), 1):
        prefix += line + "\n"
        try:
            data = tomllib.loads(prefix)
        except tomllib.TOMLDecodeError:
            continue
        for key in _keys(data):
            lines.setdefault(key, begins)
        begins = number + 1
    return lines


def _keys(value: object, above: Key = ()) -> list[Key]:
    keys: list[Key] = [above] if above else []
    if isinstance(value, dict):
        for name, inner in value.items():
            keys += _keys(inner, (*above, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            keys += _keys(inner, (*above, index))
    return keys

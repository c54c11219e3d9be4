# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks that dependencies go one way: in tierd/ by its imports, in shim/ by its includes.

usage: python tools/check_imports.py [ROOT]

The tables below are the rule. A part may use the parts of any lower layer, and nothing of its own
layer but itself; what stands together on one line is one part. Imports inside functions and under
TYPE_CHECKING count as well: they are how cycles are hidden.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

Layers = tuple[tuple[str, ...], ...]

TIERD: Layers = (
    ("__main__",),
    ("cli",),
    ("daemon",),
    ("spillcontrol",),
    ("server session holdings resume listener", "relief", "view viewtree fusemount", "metrics"),
    ("reattach",),
    ("migrate tiers ahead", "ledger", "statemap", "pressure", "arenasource"),
    ("policy capacity", "watermark", "arena", "nvme", "wire", "config tomlfile", "startup", "notify"),
    ("memory", "device", "pins", "filelock"),
    ("model",),
    ("__init__",),
)

SHIM: Layers = (
    # The hooks, by what they are about; interpose is the way into them.
    ("interpose", "graph graph_exec graph_issue graph_nodes graph_read"),
    (
        "copy copy_rows fill_rows",
        "handles",
        "memop",
        "refuse",
        "memory memory_info ordered room vmm vmm_account vmm_create vmm_direct vmm_piece vmm_region",
        "context",
    ),
    ("ranges", "far"),
    ("graph_body", "launch"),
    (
        "residency release choose meant sparse grace guess pager in_place lower lower_arenas lower_transfer "
        "vram handover device fault record trace trace_event trace_write",
    ),
    ("predict predict_log predict_plan", "mover", "client reattach", "alloc_map", "params"),
    ("packet", "held", "ticket", "gate", "timing", "function", "spool", "checksum", "pins", "address"),
    ("wire",),
    ("driver stub",),
    ("cuda_abi", "log", "thread", "fork", "memory_of"),
)

PURE: Mapping[str, frozenset[str]] = {
    part: frozenset(
        {"asyncio", "io", "os", "random", "select", "socket", "subprocess", "threading", "time", "trio"}
    )
    for part in ("model", "policy", "capacity", "watermark")
}
"""Modules that decide and do not act: what they must not import of Python's or others'."""


@dataclass(frozen=True, slots=True)
class Use:
    """One import or include."""

    line: int
    target: str  #: the part of the project that is used, or the top-level name of a foreign module
    foreign: bool


class Rule:
    """Where each part of a table stands."""

    def __init__(self, layers: Layers) -> None:
        self._place = {
            part: (depth, group)
            for depth, layer in enumerate(layers)
            for group in layer
            for part in group.split()
        }

    def objection(self, user: str, used: str) -> str | None:
        """Why `user` must not use `used`; None when it may."""
        for part in (user, used):
            if part not in self._place:
                return f"{part} stands in no layer of tools/check_imports.py: add it where it belongs"
        user_depth, user_group = self._place[user]
        used_depth, used_group = self._place[used]
        if used_depth > user_depth or used_group == user_group:
            return None
        relation = "beside" if used_depth == user_depth else "above"
        return f"{user} must not use {used}, which stands {relation} it"


def python_uses(source: str, package: list[str], name: str) -> Iterator[Use]:
    """The imports of a module of `package` (its dotted name in pieces), wherever they stand."""
    for node in ast.walk(ast.parse(source, name)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _use(node.lineno, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            if node.level:
                module = package[: len(package) - node.level + 1] + module
            for alias in node.names:
                # "from . import x": x is the module, unless the package itself defines it.
                yield _use(node.lineno, [*module, alias.name] if len(module) == 1 else module)


def _use(line: int, module: list[str]) -> Use:
    if module[0] != "tierd":
        return Use(line, module[0], foreign=True)
    part = module[1] if len(module) > 1 else "__init__"
    return Use(line, "__init__" if part == "__version__" else part, foreign=False)


def check_tierd(root: Path) -> Iterator[str]:
    rule = Rule(TIERD)
    for path in sorted((root / "tierd").rglob("*.py")):
        pieces = path.relative_to(root).with_suffix("").parts
        part = pieces[1]
        for use in python_uses(path.read_text(encoding="utf-8"), list(pieces[:-1]), str(path)):
            if not use.foreign:
                objection = rule.objection(part, use.target)
            elif use.target in PURE.get(part, ()):
                objection = f"{part} decides and does not act: it must not import {use.target}"
            else:
                objection = None
            if objection:
                yield f"{path.relative_to(root)}:{use.line}: {objection}"


_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


def check_shim(root: Path) -> Iterator[str]:
    rule = Rule(SHIM)
    for path in sorted((root / "shim").glob("*.[ch]")):
        source = path.read_text(encoding="utf-8")
        for match in _INCLUDE.finditer(source):
            # driver.gen.h is made from hooks.def and is part of driver.h.
            objection = rule.objection(path.stem, Path(match[1]).name.split(".")[0])
            if objection:
                yield f"{path.relative_to(root)}:{source.count(chr(10), 0, match.start(1)) + 1}: {objection}"


def main(arguments: list[str]) -> int:
    if len(arguments) > 1:
        print("usage: python tools/check_imports.py [ROOT]", file=sys.stderr)
        return 2
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
    objections = [*check_tierd(root), *check_shim(root)]
    for objection in objections:
        print(objection)
    return 1 if objections else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/cuda-surface.md names every function of the driver that has to do with addresses of device memory.

So that one more, in a later toolkit's cuda.h, is noticed before a program calls it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEADER = Path("/usr/local/cuda/include/cuda.h")
UNTYPED = ("globalAddress", "CUmemDecompressParams", "CUDA_LAUNCH_PARAMS", "kernelParams")
"""In cuda.h, addresses of device memory that are not of type CUdeviceptr."""


def base(name: str) -> str:
    """A function's name without its version and without what says which default stream it means."""
    return re.sub(r"(_v\d+)?(_ptsz|_ptds)?$", "", name)


def hooks() -> set[str]:
    lines = (ROOT / "shim" / "hooks.def").read_text().splitlines()
    return {base(line.split()[1]) for line in lines if line.startswith("hook ")}


def page() -> tuple[set[str], set[str]]:
    """(answered by the shim, passed on), as the page has it."""
    text = (ROOT / "docs" / "cuda-surface.md").read_text()
    answered, passed = text.split("\n## Passed on")
    rows = [
        [row.split("|")[1] for row in part.splitlines() if row.startswith("| `cu")]
        for part in (answered, passed)
    ]
    first, second = (set(re.findall(r"`(cu[A-Z]\w*)`", " ".join(part))) for part in rows)
    return first, second


def structs(text: str) -> list[tuple[str, str]]:
    """(body, names) of every struct and union, also of those with others inside."""
    found = []
    for start in re.finditer(r"\btypedef (?:struct|union)\s*(\w*)\s*\{", text):
        depth, at = 1, start.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        names = text[at : text.index(";", at)]
        found.append((text[start.end() : at], f"{start[1]} {names}"))
    return found


def with_addresses(text: str) -> set[str]:
    """Names of the functions of a cuda.h that take or give addresses of device memory."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S)
    types = {"CUdeviceptr"}
    aliases = re.findall(r"typedef (?:struct |union )?(\w+) (\w+);", text)
    bodies = structs(text)
    before = 0
    while len(types) != before:
        before = len(types)
        for body, names in bodies:
            if types & set(re.findall(r"\w+", body)):
                types |= set(names.split())
        types |= {name for old, name in aliases if old in types}
    functions = set()
    for name, params in re.findall(r"\bCUresult CUDAAPI (\w+)\s*\(([^;]*)\);", text):
        if types & set(re.findall(r"\w+", params)) or any(word in params for word in UNTYPED):
            functions.add(base(name))
    return functions


def test_what_the_page_says_is_answered_is_hooked_and_nothing_else() -> None:
    answered, passed = page()
    assert answered == hooks()
    assert not passed & hooks()


def test_every_function_on_the_page_exists() -> None:
    names = {base(name) for name in (ROOT / "tools" / "softcuda" / "names.txt").read_text().split()}
    answered, passed = page()
    assert answered | passed <= names


def test_what_is_hooked_is_hooked_in_every_version() -> None:
    """But for the first ones of what has 32-bit addresses in them."""
    exported = (ROOT / "tools" / "softcuda" / "names.txt").read_text().split()
    table = (ROOT / "shim" / "hooks.def").read_text().splitlines()
    rows = [line.split()[1:3] for line in table if line.startswith("hook ")]
    hooked = {name for name, _ in rows} | {name + suffix for name, suffix in rows if suffix != "-"}
    missing = [name for name in exported if base(name) in hooks() and name not in hooked]
    assert [name for name in missing if re.search(r"_v\d|_pts", name)] == []
    assert [name for name in missing if name + "_v2" not in hooked] == []


def test_the_reader_finds_addresses_in_structs_of_structs() -> None:
    header = """
    typedef struct A_st { int x; union { struct { CUdeviceptr p; } a; int b; } u; } A_v1; /* ; { */
    typedef A_v1 A;
    typedef struct B_st { A *list; } B;
    CUresult CUDAAPI cuFirst_v2(const B *b);
    CUresult CUDAAPI cuSecond(int x,
                              int y);
    CUresult CUDAAPI cuThird_ptsz(CUdeviceptr p);
    """
    assert with_addresses(header) == {"cuFirst", "cuThird"}


@pytest.mark.skipif(not HEADER.exists(), reason=f"no CUDA toolkit: {HEADER} is not there to compare with")
def test_the_page_has_every_function_with_addresses() -> None:
    wanted = with_addresses(HEADER.read_text())
    assert "cuMemcpyHtoD" in wanted
    answered, passed = page()
    assert wanted - answered - passed == set()

# SPDX-License-Identifier: GPL-2.0-or-later
"""shim/cuda_abi.h says what NVIDIA's cuda.h says, where there is one to compare with."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

SHIM = Path(__file__).parents[2] / "shim"
TOOLKIT = Path("/usr/local/cuda/include")


def structs() -> dict[str, list[str]]:
    """Field names of every struct and union of cuda_abi.h."""
    text = re.sub(r"/\*.*?\*/", "", (SHIM / "cuda_abi.h").read_text(), flags=re.S)
    found = {}
    for body, name in re.findall(r"typedef (?:struct|union) \{\n(.*?)\n\} (\w+);", text, re.S):
        body = re.sub(r"\tstruct \{.*?\} (\w+);", r"\tint \1;", body, flags=re.S)
        fields = []
        for line in body.splitlines():
            fields += [re.sub(r"\[.*\]|\*", "", part).split()[-1] for part in line.strip(" \t;").split(",")]
        found[name] = [f for f in fields if f not in ("pad", "bytes")]
    return found


def constants() -> dict[str, int]:
    text = (SHIM / "cuda_abi.h").read_text()
    return {name: int(value) for name, value in re.findall(r"\b(CU\w+) = (\d+)", text)}


def test_the_reader_reads_something() -> None:
    assert "srcXInBytes" in structs()["CUDA_MEMCPY2D"]
    assert constants()["CUDA_ERROR_OUT_OF_MEMORY"] == 2


@pytest.mark.skipif(not (TOOLKIT / "cuda.h").exists(), reason="no CUDA toolkit to compare with")
def test_sizes_offsets_and_values_are_those_of_cuda_h(tmp_path: Path) -> None:
    """Both headers are compiled on their own and print the same."""
    lines = []
    for name, fields in structs().items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        lines += [f'printf("{name}.{f} %zu\\n", offsetof({name}, {f}));' for f in fields]
    lines += [f'printf("{name} %d\\n", (int){name});' for name in constants()]
    main = "int main(void)\n{\n" + "\n".join(lines) + "\nreturn 0;\n}\n"
    outputs = []
    for header, include in (("cuda_abi.h", SHIM), ("cuda.h", TOOLKIT)):
        source = tmp_path / f"{header}.c"
        source.write_text(f"#include <stddef.h>\n#include <stdio.h>\n#include <{header}>\n{main}")
        program = tmp_path / header
        subprocess.run(["cc", f"-I{include}", "-o", program, source], check=True)
        outputs.append(subprocess.run([program], check=True, capture_output=True, text=True).stdout)
    assert outputs[0] == outputs[1]

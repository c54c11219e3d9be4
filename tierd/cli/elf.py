# SPDX-License-Identifier: GPL-2.0-or-later
"""What a shared library exports: just enough of ELF for 64-bit little-endian libraries (elf(5)).

Neither binutils nor a package is asked for: doctor must run where nothing is installed yet.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

__all__ = ["exported_functions"]

_SECTION = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr: name, type, ..., offset [4], size [5], link [6]
_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym: name, info, other, section, value, size
_SHT_DYNSYM = 11
_STT_FUNC = 2
_STT_GNU_IFUNC = 10
_SHN_UNDEF = 0


def exported_functions(library: Path, *, prefix: str = "cu") -> frozenset[str]:
    """Names of the functions in `library`'s dynamic symbol table that begin with `prefix`.

    Raises OSError, or ValueError when the file is not such a library.
    """
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as image:
        if image[:6] != b"\x7fELF\x02\x01":
            raise ValueError(f"{library}: not a 64-bit ELF library")
        try:
            return frozenset(name for name in _functions(image) if name.startswith(prefix))
        except (struct.error, IndexError, OverflowError):
            raise ValueError(f"{library}: a damaged ELF library") from None


def _functions(image: mmap.mmap) -> list[str]:
    (table,) = struct.unpack_from("<Q", image, 0x28)
    entry_size, entries = struct.unpack_from("<HH", image, 0x3A)
    sections = [_SECTION.unpack_from(image, table + number * entry_size) for number in range(entries)]
    names = []
    for section in sections:
        if section[1] != _SHT_DYNSYM:
            continue
        strings = sections[section[6]][4]
        for at in range(section[4], section[4] + section[5], _SYMBOL.size):
            name, info, _, defined_in, _, _ = _SYMBOL.unpack_from(image, at)
            if info & 0xF in (_STT_FUNC, _STT_GNU_IFUNC) and defined_in != _SHN_UNDEF:
                start = strings + name
                names.append(image[start : image.find(b"\0", start)].decode("ascii", "replace"))
    return names

# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes the ELF kernel out of a bzImage.

QEMU starts an ELF kernel at its PVH entry, in 64-bit code. A bzImage goes through the firmware's
real-mode boot and unpacks itself, which under emulation is 5 seconds of a boot of 12.
"""

from __future__ import annotations

import lzma
import shutil
import struct
import subprocess

_XZ = b"\xfd7zXZ\x00"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SETUP_SECTS = 0x1F1
_MAGIC = 0x202
_PAYLOAD = 0x248  # payload_offset and payload_length of Documentation/arch/x86/boot.rst


def unpack(image: bytes) -> bytes | None:
    """The ELF kernel within; None where this cannot unpack it, and the image has to boot as it is."""
    if image[_MAGIC : _MAGIC + 4] != b"HdrS":
        return None
    sectors = image[_SETUP_SECTS] or 4
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = (sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(_XZ):
        # Not lzma.decompress(): four bytes with the unpacked size follow the stream.
        kernel = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(_ZSTD) and shutil.which("zstd"):
        unzstd = ["zstd", "-dcq"]
        kernel = subprocess.run(unzstd, input=payload[:-4], stdout=subprocess.PIPE, check=True).stdout
    else:
        return None
    return kernel if kernel.startswith(b"\x7fELF") else None

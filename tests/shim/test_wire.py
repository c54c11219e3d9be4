# SPDX-License-Identifier: GPL-2.0-or-later
"""shim/wire.h and tierd/wire say the same, and the shim's msgpack is everybody's msgpack."""

from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import cffi
import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierd import wire
from tierd.model import ChunkState

SHIM = Path(__file__).parents[2] / "shim"
HEADER = (SHIM / "wire.h").read_text()

PROBE = """
#include "wire.h"

/* Reads one map of strings and numbers; writes KEY=VALUE lines. Returns -1 for what is refused. */
int probe_read(const unsigned char *bytes, size_t length, char *out, size_t room)
{
	struct cursor cursor = { bytes, bytes + length, false };
	size_t fields = cursor_map(&cursor), used = 0;

	while (fields-- && !cursor.bad) {
		struct field key = cursor_field(&cursor), value = cursor_field(&cursor);

		if (cursor.bad || !key.text || used + key.length + value.length + 32 > room)
			return -1;
		used += sprintf(out + used, "%.*s=", (int)key.length, key.text);
		if (value.text)
			used += sprintf(out + used, "'%.*s'\\n", (int)value.length, value.text);
		else
			used += sprintf(out + used, "%llu\\n", (unsigned long long)value.number);
	}
	return cursor.bad || cursor.at != cursor.end ? -1 : (int)used;
}

size_t probe_write(unsigned char *out, const char *op, uint64_t value)
{
	struct message m;

	message_start(&m);
	message_string(&m, "op", op);
	message_uint(&m, "value", value);
	message_end(&m);
	memcpy(out, m.bytes, m.length);
	return m.length;
}
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The codec compiled with address and undefined-behaviour checks that abort."""
    folder = tmp_path_factory.mktemp("wire")
    (folder / "probe.c").write_text("#include <stdio.h>\n" + PROBE)
    checks = ["-fsanitize=undefined", "-fno-sanitize-recover=all"]
    build = ["cc", "-std=gnu11", "-g", "-O1", "-shared", "-fPIC", f"-I{SHIM}", *checks]
    subprocess.run([*build, "-o", folder / "probe.so", folder / "probe.c", SHIM / "packet.c"], check=True)
    ffi = cffi.FFI()
    ffi.cdef("""
        int probe_read(const unsigned char *bytes, size_t length, char *out, size_t room);
        size_t probe_write(unsigned char *out, const char *op, uint64_t value);
        size_t packet_receive(int socket, unsigned char *buffer, int *fd);
    """)
    return ffi, ffi.dlopen(str(folder / "probe.so"))


def test_counters_are_in_the_same_order() -> None:
    names = re.findall(r"^\tCOUNTER_(\w+),", HEADER, re.M)
    assert tuple(name.lower() for name in names) == wire.COUNTERS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WIRE_VERSION", wire.PROTOCOL_VERSION),
        ("WIRE_MAX_PACKET", wire.MAX_PACKET),
        ("STATE_VERSION", wire.STATE_VERSION),
        ("STATE_HEADER_BYTES", wire.STATE_HEADER_BYTES),
        ("STATE_MAGIC", wire.STATE_MAGIC),
    ],
)
def test_numbers_are_the_same(name: str, value: int) -> None:
    found = re.search(rf"^#define {name} (\w+?)u?$", HEADER, re.M)
    assert found is not None
    assert int(found[1], 0) == value


def test_chunk_letters_are_the_same() -> None:
    letters = {name: value for name, value in re.findall(r"^\tSTATE_(\w+) = (?:'(.)'|0),", HEADER, re.M)}
    assert {name: letter.encode() or b"\0" for name, letter in letters.items()} == {
        state.name: state.value for state in ChunkState
    }


@given(
    message=st.dictionaries(
        st.text("abcdefgh_", min_size=1, max_size=20),
        st.integers(0, 2**64 - 1) | st.text("abc XYZ.,:/()", max_size=300),
        max_size=20,
    )
)
@settings(deadline=None)
def test_reads_what_msgpack_packs(probe: tuple[Any, Any], message: dict[str, int | str]) -> None:
    ffi, lib = probe
    packed = msgpack.packb(message)
    out = ffi.new("char[]", 65536)
    assert lib.probe_read(packed, len(packed), out, 65536) >= 0
    assert ffi.string(out).decode() == "".join(f"{k}={v!r}\n" for k, v in message.items())


@given(data=st.binary(max_size=200))
@settings(deadline=None, max_examples=500)
def test_never_reads_past_the_end_of_garbage(probe: tuple[Any, Any], data: bytes) -> None:
    ffi, lib = probe
    exact = ffi.new("unsigned char[]", data)
    out = ffi.new("char[]", 65536)
    assert lib.probe_read(exact, len(data), out, 65536) >= -1


@given(cut=st.integers(1, 60))
@settings(deadline=None)
def test_a_torn_packet_is_refused(probe: tuple[Any, Any], cut: int) -> None:
    ffi, lib = probe
    packed = msgpack.packb({"re": 7, "error": "ENOSPC", "message": "x" * 50, "arena": 2**40})
    out = ffi.new("char[]", 65536)
    assert lib.probe_read(packed[:-cut], len(packed) - cut, out, 65536) == -1


@given(op=st.sampled_from(sorted(wire.OPS[wire.Sender.SHIM])), value=st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_msgpack_reads_what_it_writes(probe: tuple[Any, Any], op: str, value: int) -> None:
    ffi, lib = probe
    out = ffi.new("unsigned char[]", 512)
    length = lib.probe_write(out, op.encode(), value)
    assert msgpack.unpackb(ffi.buffer(out, length)[:]) == {"op": op, "value": value}


def test_what_a_daemon_answered_before_it_died_is_received(probe: tuple[Any, Any]) -> None:
    """The kernel reports first that a request was left unread."""
    ffi, lib = probe
    buffer, fd = ffi.new(f"unsigned char[{wire.MAX_PACKET}]"), ffi.new("int *")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            ours.send(b"unread")
            for answer in (b"first", b"second"):
                theirs.send(answer)
        got = [lib.packet_receive(ours.fileno(), buffer, fd) for _ in range(3)]
    assert got == [len(b"first"), len(b"second"), 0]

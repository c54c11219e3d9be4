# SPDX-License-Identifier: GPL-2.0-or-later
"""Encryption at rest: against IEEE 1619's answers, an XTS written anew, and misuse."""

from __future__ import annotations

import os
import resource
import sys
import threading

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher as Context
from cryptography.hazmat.primitives.ciphers import algorithms, modes

from tests.unit.nvme_harness import as_nobody, limited
from tierd.nvme.crypt import UNIT, Cipher, CipherMissing

KEY = bytes.fromhex(
    "2718281828459045235360287471352662497757247093699959574966967627"
    "3141592653589793238462643383279502884197169399375105820974944592"
)


def encrypted(cipher: Cipher, index: int, generation: int, plain: bytes) -> bytes:
    target = bytearray(len(plain))
    cipher.encrypt(index, generation, memoryview(plain), memoryview(target))
    return bytes(target)


def xts(key: bytes, tweak: bytes, plain: bytes) -> bytes:
    """IEEE 1619's definition, by nothing but single AES blocks."""
    data = Context(algorithms.AES(key[:32]), modes.ECB()).encryptor()
    mask = Context(algorithms.AES(key[32:]), modes.ECB()).encryptor().update(tweak)
    result = b""
    for start in range(0, len(plain), 16):
        block = bytes(a ^ b for a, b in zip(plain[start : start + 16], mask, strict=True))
        result += bytes(a ^ b for a, b in zip(data.update(block), mask, strict=True))
        number = int.from_bytes(mask, "little") << 1
        mask = ((number ^ (0x87 if number >> 128 else 0)) & (1 << 128) - 1).to_bytes(16, "little")
    return result


def test_vector_10_of_ieee_1619() -> None:
    plain = bytes(range(256)) * 2
    with Cipher(KEY) as cipher:
        found = encrypted(cipher, 0, 0xFF, plain)
    assert found[:64].hex() == (
        "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b"
        "5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd"
    )
    assert found[-16:].hex() == "c4f36ffda9fcea70b9c6e693e148c151"
    assert found == xts(KEY, b"\xff" + bytes(15), plain)


def test_every_unit_has_a_tweak_of_its_own() -> None:
    plain = bytes(UNIT) + bytes(4096)
    with Cipher(KEY) as cipher:
        found = encrypted(cipher, 5, 7, plain)
    tweak = (7).to_bytes(8, "little") + (5).to_bytes(5, "little")
    assert found[:4096] == xts(KEY, tweak + bytes(3), bytes(4096))
    assert found[UNIT:] == xts(KEY, tweak + b"\1\0\0", bytes(4096))


@pytest.mark.parametrize("length", [16, 4096, 65536, UNIT + 48])
@pytest.mark.parametrize("in_place", [True, False])
def test_there_and_back(length: int, in_place: bool) -> None:
    plain = os.urandom(length)
    source = bytearray(plain)
    target = source if in_place else bytearray(length)
    with Cipher() as cipher:
        cipher.encrypt(3, 4, memoryview(source), memoryview(target))
        assert target != plain
        assert in_place or source == plain
        back = target if in_place else bytearray(length)
        cipher.decrypt(3, 4, memoryview(target), memoryview(back))
        assert back == plain


def test_nothing_repeats() -> None:
    """Not for another place, nor for another generation of it, nor under another cipher's key."""
    plain = bytes(4096)
    with Cipher() as one, Cipher() as other:
        seen = {encrypted(one, index, generation, plain) for index in range(5) for generation in range(5)}
        assert len(seen) == 25
        assert encrypted(other, 0, 0, plain) not in seen


def test_misuse_is_refused() -> None:
    memory = memoryview(bytearray(64))
    with Cipher() as cipher:
        for source, target in ((memory[:0], memory[:0]), (memory[:20], memory[:20]), (memory, memory[:48])):
            with pytest.raises(ValueError, match="cannot encrypt"):
                cipher.encrypt(0, 0, source, target)
        for index, generation in ((-1, 0), (0, -1), (1 << 40, 0), (0, 1 << 64)):
            with pytest.raises(ValueError, match="no tweak"):
                cipher.encrypt(index, generation, memory, memory)
    cipher.close()
    with pytest.raises(ValueError, match="closed"):
        cipher.decrypt(0, 0, memory, memory)
    with pytest.raises(ValueError, match="64 bytes"):
        Cipher(bytes(32))


def test_the_key_is_locked_in_memory_if_that_is_allowed() -> None:
    with as_nobody(), limited(resource.RLIMIT_MEMLOCK, 0), Cipher() as cipher:
        assert not cipher.locked
    with as_nobody(), limited(resource.RLIMIT_MEMLOCK, 65536), Cipher() as cipher:
        assert cipher.locked


def test_other_threads_go_on_meanwhile() -> None:
    """With a switch interval of hours nobody gets the GIL unless it is let go of."""
    ran = False
    gate = threading.Lock()
    gate.acquire()

    def run() -> None:
        nonlocal ran
        with gate:
            ran = True

    memory = memoryview(bytearray(UNIT))
    before = sys.getswitchinterval()
    thread = threading.Thread(target=run)
    thread.start()
    with Cipher() as cipher:
        try:
            sys.setswitchinterval(10_000)
            gate.release()  # which wakes the thread, and keeps the GIL
            for _ in range(300):  # on a busy machine it takes a while to wake up
                if ran:
                    break
                cipher.encrypt(0, 0, memory, memory)
            assert ran
        finally:
            sys.setswitchinterval(before)
            thread.join()


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers", None)
    with pytest.raises(CipherMissing, match=r"pip install 'greenboost\[crypt\]'"):
        Cipher()

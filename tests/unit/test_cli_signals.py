# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals held back, and let in where a wait may be long."""

from __future__ import annotations

import signal
import threading

import pytest

from tierd.cli.signals import Interrupted, hold_signals


def send(number: signal.Signals) -> None:
    # To this thread: other tests may have left idle ones, which hold nothing back.
    signal.pthread_kill(threading.get_ident(), number)


def test_a_signal_that_asks_for_the_end_interrupts_where_it_is_let_in() -> None:
    with hold_signals() as held:
        send(signal.SIGTERM)
        with pytest.raises(Interrupted) as interrupted, held.let_in():
            pass
    assert interrupted.value.number == signal.SIGTERM


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with hold_signals() as held, held.let_in():
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)

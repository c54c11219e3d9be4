# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests side by side: what runs in one is single-threaded for the most part, and minutes long."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from subprocess import CompletedProcess

import pytest

# Plugins that there is no use for there; under emulation, importing hypothesis' alone takes seconds.
_PLUGINS = ("cacheprovider", "hypothesispytest", "xdist", "xdist.looponfail")
PYTEST = (".venv/bin/python", "-m", "pytest", *(f"-pno:{plugin}" for plugin in _PLUGINS))
"""pytest in a guest."""

Run = Callable[[str], CompletedProcess[str]]
Start = Callable[[Run], dict[str, Future[CompletedProcess[str]]]]


@pytest.fixture(scope="module")
def each_guest(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Calls a function with each `guest` that tests of this module are to be run in.

    In their order and one for a processor at a time: what is waited for in a guest has its patience.
    """
    callspecs = (getattr(item, "callspec", None) for item in request.session.items)
    modules = (getattr(item, "module", None) for item in request.session.items)
    guests = {
        callspec.params["guest"]: None
        for callspec, module in zip(callspecs, modules, strict=True)
        if module is request.module and callspec and "guest" in callspec.params
    }
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield lambda run: {guest: pool.submit(run, guest) for guest in guests}

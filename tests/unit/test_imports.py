# SPDX-License-Identifier: GPL-2.0-or-later
"""Dependencies go one way: the rule's checker finds what breaks it, and the project does not."""

from __future__ import annotations

from pathlib import Path

import pytest

import check_imports

ROOT = Path(__file__).resolve().parents[2]


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_project_keeps_the_rule() -> None:
    assert [*check_imports.check_tierd(ROOT), *check_imports.check_shim(ROOT)] == []


@pytest.mark.parametrize(
    ("name", "text", "objection"),
    [
        ("tierd/model.py", "\nfrom .wire import x\n", "tierd/model.py:2: model must not use wire"),
        ("tierd/model.py", "import tierd.cli.main\n", "tierd/model.py:1: model must not use cli"),
        ("tierd/model.py", "from tierd import policy\n", "tierd/model.py:1: model must not use policy"),
        ("tierd/wire/codec.py", "from .. import server\n", "tierd/wire/codec.py:1: wire must not use server"),
        (
            "tierd/wire/codec.py",
            "from ..server import x\n",
            "tierd/wire/codec.py:1: wire must not use server",
        ),
        (
            "tierd/nvme/ring.py",
            "def f():\n    from tierd.wire import x\n",
            "tierd/nvme/ring.py:2: nvme must not",
        ),
        (
            "tierd/view.py",
            "from . import metrics\n",
            "tierd/view.py:1: view must not use metrics, which stands bes",
        ),
        ("tierd/policy.py", "import trio\n", "tierd/policy.py:1: policy decides and does not act"),
        ("tierd/policy.py", "from os import path\n", "tierd/policy.py:1: policy decides and does not act"),
        ("tierd/new.py", "from . import model\n", "tierd/new.py:1: new stands in no layer"),
        ("shim/wire.h", '#include <x.h>\n#include "client.h"\n', "shim/wire.h:2: wire must not use client"),
        (
            "shim/mover.c",
            '#include "client.h"\n',
            "shim/mover.c:1: mover must not use client, which stands beside",
        ),
        ("shim/new.c", '\n#include "log.h"\n', "shim/new.c:2: new stands in no layer"),
    ],
)
def test_what_breaks_the_rule_is_found_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, objection: str
) -> None:
    write(tmp_path, name, text)
    assert check_imports.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith(objection)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tierd/cli/run.py", "from .. import __version__, config, wire\nfrom . import mount\nimport os\n"),
        ("tierd/daemon.py", "from . import metrics, server, view\nfrom .nvme.ring import Ring\n"),
        ("tierd/wire/__init__.py", "from .codec import Request\nfrom ..model import Tier\nimport trio\n"),
        ("tierd/policy.py", "from .model import Tier\nfrom dataclasses import dataclass\n"),
        ("shim/mover.c", '#include "mover.h"\n#include "driver.h"\n#include "log.h"\n'),
        ("shim/driver.h", '#include "driver.gen.h"\n#include "cuda_abi.h"\n'),
    ],
)
def test_what_keeps_the_rule_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    write(tmp_path, name, text)
    assert check_imports.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""


def test_more_than_one_root_is_a_usage_error() -> None:
    assert check_imports.main(["a", "b"]) == 2

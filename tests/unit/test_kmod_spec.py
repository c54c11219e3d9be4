# SPDX-License-Identifier: GPL-2.0-or-later
"""kmod/uapi/greenboost_netlink.h is what kmod/greenboost.yaml says.

The kernel's generator is not at hand here: what counts of its output, the numbers, is made again.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from vmhost import ROOT

KMOD = ROOT / "kmod"


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    loaded: dict[str, Any] = yaml.safe_load((KMOD / "greenboost.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def header() -> dict[str, int]:
    """The numbers of all enumerators."""
    numbers: dict[str, int] = {}
    text = (KMOD / "uapi" / "greenboost_netlink.h").read_text()
    for body in re.findall(r"enum \w*\s*\{(.*?)\}", text, re.DOTALL):
        number = -1
        for name, first in re.findall(r"^\s(GREENBOOST_\w+)(?: = (\d+))?,$", body, re.MULTILINE):
            number = int(first) if first else number + 1
            numbers[name] = number
    return numbers


def constants(prefix: str, entries: list[dict[str, Any]], first: int) -> dict[str, int]:
    names = (f"GREENBOOST_{prefix}_{entry['name']}".upper().replace("-", "_") for entry in entries)
    return {name: number for number, name in enumerate(names, first)}


def test_the_header_has_the_numbers_of_the_specification(
    spec: dict[str, Any], header: dict[str, int]
) -> None:
    expected: dict[str, int] = {}
    for enum in spec["definitions"]:
        expected |= constants(enum["name"], enum["entries"], 0)
    [attributes] = spec["attribute-sets"]
    expected |= constants("A_STATE", attributes["attributes"], 1)
    expected |= constants("CMD", spec["operations"]["list"], 1)
    assert header == expected


def test_an_answer_has_every_attribute(spec: dict[str, Any]) -> None:
    [attributes] = spec["attribute-sets"]
    names = [attribute["name"] for attribute in attributes["attributes"] if attribute["type"] != "pad"]
    assert spec["operations"]["list"][0]["do"]["reply"]["attributes"] == names


def test_the_ioctl_tells_the_same(spec: dict[str, Any]) -> None:
    text = (KMOD / "uapi" / "greenboost.h").read_text()
    [body] = re.findall(r"struct greenboost_state \{(.*?)\}", text, re.DOTALL)
    fields = dict((name, kind) for kind, name in re.findall(r"__(u\d\d) (\w+);", body))
    del fields["pad"]
    [attributes] = spec["attribute-sets"]
    assert fields == {
        attribute["name"].replace("-", "_"): attribute["type"]
        for attribute in attributes["attributes"]
        if attribute["type"] != "pad"
    }

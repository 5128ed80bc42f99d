"""Examples in docstrings give what they say, in modules that have some: to collect them from all takes too long."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "cil").rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    failed, _ = doctest.testmod(import_module(name.removesuffix(".__init__")))
    assert not failed, "see what was printed"


def test_there_are_examples():
    assert len(MODULES) > 60

"""An edit of a file that own code imports makes the same command a new run."""

from __future__ import annotations

import importlib
import sys

import pytest

from cil.api import source_digest
from cil.engine.own_code import files_of


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_idea.py").write_text(
        "import json\nimport cil\nfrom own_helper import ALPHA\n\n\nclass Idea:\n"
        "    def loss(self):\n        import own_late\n"
    )
    (tmp_path / "own_helper.py").write_text("from own_parts import more\nALPHA = 1\n")
    (tmp_path / "own_late.py").write_text("import own_idea\n")
    (tmp_path / "own_other.py").write_text("")
    (tmp_path / "own_parts").mkdir()
    (tmp_path / "own_parts" / "__init__.py").write_text("")
    (tmp_path / "own_parts" / "more.py").write_text("from . import deeper\nimport torch\n")
    (tmp_path / "own_parts" / "deeper.py").write_text("import own_other\n")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def test_files_that_are_imported_from_beside_a_module(folder):
    found = files_of("own_idea", folder / "own_idea.py")
    assert {*found} == {
        "own_idea", "own_helper", "own_late", "own_parts", "own_parts.more", "own_parts.deeper", "own_other",
    }  # fmt: skip


def test_a_package_is_its_own_modules_alone(folder):
    assert {*files_of("own_parts.more", folder / "own_parts" / "more.py")} == {
        "own_parts", "own_parts.more", "own_parts.deeper",
    }  # fmt: skip


def test_installed_modules_have_nothing_to_do_with_each_other(folder):
    place = folder / "site-packages"
    place.mkdir()
    (place / "own_single.py").write_text("import own_neighbour\n")
    (place / "own_neighbour.py").write_text("")
    assert {*files_of("own_single", place / "own_single.py")} == {"own_single"}


def test_an_edit_of_a_helper_is_an_edit_of_the_method(folder):
    kind = importlib.import_module("own_idea").Idea
    before = source_digest(kind)
    assert source_digest(kind) == before
    (folder / "own_other.py").write_text("# changed\n")
    assert source_digest(kind) != before

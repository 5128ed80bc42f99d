"""``cil new``: the packages that it writes work as they are."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cil.cli.new import KINDS

SLOW = {
    "strategy": "test_it_keeps_the_contract",
    "adapter": "test_it_keeps_the_contract",
}  # docs/adding.md has the same


def install(package: Path, site: Path) -> None:
    """What pip would do: modules and entry points on a path."""
    project = tomllib.loads((package / "pyproject.toml").read_text())
    folder = site / f"{project['project']['name'].replace('-', '_')}-0.0.1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['project']['name']}\nVersion: 0.0.1\n")
    groups = project["project"]["entry-points"].items()
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items()) for group, points in groups
    ]
    (folder / "entry_points.txt").write_text("\n".join(lines))
    for module in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        (site / module).symlink_to(package / module)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A package of each sort, beside each other, on one path."""
    from cil.cli.main import main

    folder = tmp_path_factory.mktemp("new")
    for what in KINDS:
        assert main(["new", what, f"my_{what}", "--to", str(folder)]) == 0
        install(folder / f"my_{what}", folder / "site")
    return folder


def in_them(written: Path, *command: str) -> str:
    """The output of a command that sees the packages."""
    path = os.pathsep.join([str(written / "site"), *filter(None, sys.path)])
    ended = subprocess.run(
        [sys.executable, "-m", *command], cwd=written, env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_their_own_tests_pass(written):
    quick = ("-k", "not keeps_the_contract")  # docs/adding.md has the same methods, which are checked there
    in_them(written, "pytest", "-q", "-p", "no:cacheprovider", *quick, *(f"my_{what}" for what in KINDS))


@pytest.mark.slow
def test_their_methods_keep_the_contract(written):
    in_them(written, "pytest", "-q", "-p", "no:cacheprovider", "my_strategy", "my_adapter")


def test_they_are_listed_with_their_origin(written):
    said = in_them(written, "cil.cli.main", "list")
    for what in KINDS:
        line = next(line for line in said.splitlines() if line.split()[:1] == [f"my_{what}"])
        assert f"cil-my-{what}" in line


def test_what_they_bring_is_one_run(written):
    said = in_them(
        written, "cil.cli.main", "compare", "strategy=replay,my_strategy", "stream=my_kind",
        "stream.train_per_class=20", "budget.exemplars=20", "trainer.epochs=1", "jobs=1", "out=runs/mine",
    )  # fmt: skip
    assert "last confidence %" in said and "my_strategy" in said


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "cil new needs one of"),
        (("thing", "mine"), "cil new makes no 'thing'"),
        (("strategy", "my-idea"), "must be a Python name in small letters"),
        (("strategy", "idée"), "small letters from a to z"),
        (("strategy", "mine_"), "not end with _"),
        (("strategy", "icarl"), "there is a strategy icarl already"),
        (("kind", "tasks"), "there is a kind of run tasks already"),
    ],
)
def test_refusals(cil, arguments, line):
    assert line in cil("new", *arguments).line


def test_a_folder_that_exists_is_left_alone(cil, tmp_path):
    (tmp_path / "mine").mkdir()
    assert "mine exists already" in cil("new", "metric", "mine").line
    (tmp_path / "file").write_text("mine")
    assert "file/other cannot be made" in cil("new", "metric", "other", "--to", "file").line
    assert not list((tmp_path / "mine").iterdir())

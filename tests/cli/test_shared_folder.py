"""A comparison has a folder of phases of its own, unless it is told another, or none; no run is another by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cil.cli.compare import plan_cell
from cil.cli.grid import expand
from cil.engine.driver import Run


def planned(out: Path, *overrides: str) -> Run:
    keys = ("stream=split_digits", "model=smallconv", "strategy=finetune", "trainer.threads=1", *overrides)
    return plan_cell(expand(keys)[0], 1, out)


@pytest.mark.parametrize(("asked", "folder"), [((), "phases"), (("reuse=null",), None), (("reuse=elsewhere",), ".")])
def test_where_phases_are_shared(asked: tuple[str, ...], folder: str | None, tmp_path: Path) -> None:
    found = planned(tmp_path, *asked)
    expected = {"phases": tmp_path / "phases", None: None, ".": Path("elsewhere")}[folder]
    assert found.options.shared == expected
    assert found.run_dir == planned(tmp_path).run_dir  # named by the identity


def test_rounded_features_are_another_run(tmp_path: Path) -> None:
    found = planned(tmp_path, "trainer.features=bf16")
    assert found.identity["features"] == "bf16"
    assert found.run_dir != planned(tmp_path).run_dir

"""A folder for each page, in which its examples run one after the other, and the run that stands for RUN_DIR."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from in_process import run_command

from cil import report
from cil.tracking import Record


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """The folder of each page."""
    found: dict[Path, Path] = {}

    def folder(page: Path) -> Path:
        return found.setdefault(page, tmp_path_factory.mktemp(page.stem.lower()))

    return folder


@pytest.fixture(scope="session")
def data_root(embedded_root: Path) -> Iterator[None]:
    """Embedded sets that are made once are kept with those of other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIL_DATA", str(embedded_root))
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, data_root: None) -> Path:
    """A small finished run of all classes at once, which adapters may start from."""
    path = tmp_path_factory.mktemp("runs") / "source"
    asked = ["run", "strategy=joint", "stream.increment=10", "model=resnet20", f"run_dir={path}", "device=cpu"]
    small = ["scale=quick", "trainer.max_steps=2", "stream.train_per_class=10", "stream.test_per_class=5"]
    assert run_command([*asked, *small, "progress=false"]) == 0
    return path


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch, data_root: None) -> None:
    """One thread; one rule of the contract and no plots: all of them are tested elsewhere."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "120")
    torch.set_num_threads(1)
    for kind in ("classes", "adaptation"):
        rules = import_module(f"cil.kinds.{kind}.rules")
        monkeypatch.setattr(rules, "RULES", rules.RULES[:1])
    monkeypatch.setattr("cil.report.plots.svg_of", lambda *given: "<svg></svg>")
    monkeypatch.setattr(report, "write_html", write_no_plots)
    monkeypatch.setattr(report, "write_figures", lambda content, folder: [])


def write_no_plots(records: Iterable[Record], path: str | Path, title: str = "", command: str | None = None) -> Path:
    """A page in place of that of a report, whose plots take seconds."""
    Path(path).write_text(f"{title}: {len(list(records))} runs")
    return Path(path)

"""The command line in this process, each test in an empty folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cil.cli.main import main


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of an error."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, f"not one line: {self.err}"
        return lines[0]


@pytest.fixture
def cil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """``cil("run", "seed=1")`` runs the command in the test's own folder; pages have empty pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("CIL_TRACEBACK", raising=False)
    torch.set_num_threads(1)
    monkeypatch.setattr("cil.report.plots.svg_of", lambda *given: "<svg></svg>")  # drawn in tests/report

    def run(*arguments: str | Path) -> Said:
        capfd.readouterr()
        root = logging.getLogger()
        handlers, level = list(root.handlers), root.level
        code = main([str(argument) for argument in arguments])
        root.handlers[:], root.level = handlers, level  # Hydra sets up the logging of the whole process
        logging.disable(logging.NOTSET)
        out, err = capfd.readouterr()
        return Said(code, out, err)

    return run

"""The fixture that leaves run directories."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from made_records import make_run

from cil.tracking import Record


@pytest.fixture
def run(tmp_path) -> Callable[..., Record]:
    """Leave a run directory under ``tmp_path / "runs"``; the record is open for reading."""
    return make_run(tmp_path / "runs")

"""Runs that were evaluated on classes to come as unknown ones: a table of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cil.kinds.classes.rows import AVERAGE
from cil.report.grids import Line, Titled, grid, scores_entry
from cil.report.rows import Row
from cil.report.verdicts import Score

HEADING = "Known and unknown classes"
NOTE = (
    "Classes to come are unknown, known is told by the maximum logit; means over the experiences that have unknown "
    "images. A guess has an AUROC of 0.5."
)
TERMS = (
    ("AUROC", "Chance that a known image scores higher than an unknown one."),
    ("OSCR", "Area under known images accepted and answered rightly, against unknown images accepted: at most the "
             "AUROC, and at most the accuracy (Dhamija et al. 2018)."),
    ("FPR95", "Unknown images accepted where 95 % of the known ones are; less is better."),
)  # fmt: skip


def open_set_table(rows: Sequence[Row]) -> Titled | None:
    """A line for each row that was evaluated so; None where none was."""
    met = [row for row in rows if row.runs and all(run.result("open_set") for run in row.runs)]
    if not met:
        return None
    lines = []
    for row in met:
        cells = {head: score.words(digits=3) for head, score in _scores(row).items()}
        lines.append(Line(row.label, cells | {"Avg %": str(row.score(AVERAGE))}))
    return Titled(HEADING, grid("strategy", lines), NOTE)


def open_set_entry(row: Row) -> dict[str, Any]:
    """The same with keys for CSV and JSON, unrounded fractions."""
    return scores_entry({f"open_set_{head.lower()}": score for head, score in _scores(row).items()})


def _scores(row: Row) -> dict[str, Score]:
    names = {"AUROC": "auroc", "OSCR": "oscr", "FPR95": "fpr95"}
    return {
        head: Score({run.seed: _mean(run.result("open_set", name) or ()) for run in row.runs})
        for head, name in names.items()
    }


def _mean(curve: Sequence[float | None]) -> float | None:
    known = [value for value in curve if value is not None]
    return sum(known) / len(known) if known else None

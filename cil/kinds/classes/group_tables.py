"""Runs whose test images have groups: a table for each column, with the worst group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cil.report.grids import Line, Titled, grid, scores_entry
from cil.report.rows import Row

NOTE = (
    "Accuracy on all classes after the last experience, %. Worst and disparity (highest less lowest) are among groups "
    "of ten images or more."
)


def group_tables(rows: Sequence[Row]) -> list[Titled]:
    """A table for each column of groups: a line for each row, a column for each group."""
    columns = dict.fromkeys(column for row in rows for run in row.runs for column in run.result("groups") or ())
    return [
        Titled(f"By {column}", grid("strategy", [_line(row, column) for row in rows if _names(row, column)]), NOTE)
        for column in columns
    ]


def groups_entry(row: Row) -> dict[str, Any]:
    """Worst group's accuracy and disparity of each column, for CSV and JSON; empty without groups."""
    columns = dict.fromkeys(column for run in row.runs for column in run.result("groups") or ())
    found: dict[str, Any] = {}
    for column in columns:
        scores = {
            f"groups_{column}_{key}": row.score("groups", column, key, -1) for key in ("worst_accuracy", "disparity")
        }
        found |= scores_entry(scores)
    return found


def _names(row: Row, column: str) -> list[str]:
    return list(row.runs[0].result("groups", column, "names") or ()) if row.runs else []


def _line(row: Row, column: str) -> Line:
    each = {
        f"{name} %": row.score("groups", column, "accuracy", -1, place)
        for place, name in enumerate(_names(row, column))
    }
    each |= {
        f"{words} %": row.score("groups", column, key, -1)
        for words, key in (("worst", "worst_accuracy"), ("disparity", "disparity"))
    }
    return Line(row.label, {head: str(score) for head, score in each.items()})

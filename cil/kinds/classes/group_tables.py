"""Tables of groups of test images, with the worst one, and of several accepted classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cil.report.grids import Line, Titled, grid, scores_entry
from cil.report.rows import Row

NOTE = (
    "Accuracy on all classes after the last experience, %. Worst and disparity (highest less lowest) are among groups "
    "of ten images or more."
)
ACCEPTED_NOTE = (
    "Accuracy after the last experience where each of an image's accepted classes counts as right, %; images: those "
    "that have such classes."
)


def group_tables(rows: Sequence[Row]) -> list[Titled]:
    """A table for each column of groups: a line for each row, a column for each group; one for accepted classes."""
    columns = dict.fromkeys(column for row in rows for run in row.runs for column in run.result("groups") or ())
    accepted = [
        Line(row.label, {"accepted %": str(row.score("accepted", "last_accuracy")), "images": f"{counted[-1]:,}"})
        for row in rows
        if row.runs and (counted := row.runs[0].result("accepted", "counted"))
    ]
    return [
        *(
            Titled(f"By {column}", grid("strategy", [_line(row, column) for row in rows if _names(row, column)]), NOTE)
            for column in columns
        ),
        *([Titled("Several accepted classes", grid("strategy", accepted), ACCEPTED_NOTE)] if accepted else []),
    ]


def groups_entry(row: Row) -> dict[str, Any]:
    """Worst group's accuracy and disparity of each column, and accuracy by accepted classes, for CSV and JSON."""
    columns = dict.fromkeys(column for run in row.runs for column in run.result("groups") or ())
    found: dict[str, Any] = {}
    for column in columns:
        scores = {
            f"groups_{column}_{key}": row.score("groups", column, key, -1) for key in ("worst_accuracy", "disparity")
        }
        found |= scores_entry(scores)
    if any(run.result("accepted") for run in row.runs):
        found |= scores_entry({"accepted_last_accuracy": row.score("accepted", "last_accuracy")})
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

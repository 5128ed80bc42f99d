"""Runs of which several answers were evaluated: a table of them, with the one marked that counts elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cil.kinds.classes.rows import AVERAGE, LAST
from cil.report.grids import NOTHING, Line, Titled, grid, scores_entry
from cil.report.rows import Row
from cil.report.verdicts import Score

MARK = " *"  # behind the method's own answer
TOP5 = "top-5 %"
NOTE = (
    "Accuracy on all classes after the last experience, %. An asterisk marks the method's own answer, which alone "
    "counts in all other tables; top-5 is of that."
)
TERMS = (
    ("head", "What the outputs of the classifier say."),
    ("nearest_mean", "The class whose exemplars' mean feature is nearest, of the same network and memory."),
)


def own_answer(row: Row) -> str | None:
    """Name of the method's own answer; None where the record does not say it."""
    return row.runs[0].result("answer") if row.runs else None


def answers_of(row: Row) -> list[str]:
    """Names of the answers of a row, the method's own first."""
    own, named = own_answer(row), (name for run in row.runs for name in run.result("answers") or ())
    return list(dict.fromkeys([own, *named])) if own else []


def answers_table(rows: Sequence[Row]) -> Titled | None:
    """A line for each row and a column for each answer; None where no row has several."""
    if not any(len(answers_of(row)) > 1 for row in rows):
        return None
    heads = sorted({name for row in rows for name in answers_of(row)})
    return Titled("Answers", grid("strategy", [_line(row, heads) for row in rows if answers_of(row)]), NOTE)


def _line(row: Row, heads: Sequence[str]) -> Line:
    own, known = own_answer(row), answers_of(row)
    cells = {head: f"{row.score('answers', head, LAST)}{MARK * (head == own)}" for head in heads if head in known}
    return Line(row.label, {head: cells.get(head, NOTHING) for head in heads} | {TOP5: str(_top5(row))})


def _top5(row: Row) -> Score:
    return row.score("answers", own_answer(row) or "", "top5_curve", -1)


def answers_entry(row: Row) -> dict[str, Any]:
    """The same with keys for CSV and JSON, numbers unrounded; empty where the record names no answers."""
    names = answers_of(row)
    if not names:
        return {}
    scores = {f"answers_{name}_{key}": row.score("answers", name, key) for name in names for key in (AVERAGE, LAST)}
    return {"answer": own_answer(row)} | scores_entry(scores | {"answers_top5": _top5(row)})

"""Class-incremental runs in a report: a section for each setting that can be compared, then accuracy over budgets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from cil.kinds.classes.anytime import TERMS as ANYTIME_TERMS
from cil.kinds.classes.anytime import anytime_entry, anytime_table, evaluated
from cil.kinds.classes.auc import budget_curves, curves_section
from cil.kinds.classes.plots import plots
from cil.kinds.classes.rows import CONVENTIONS, ClassRow
from cil.kinds.classes.table import STANDINGS, ClassTable, class_tables
from cil.report.grids import Grid, Line, Titled, byte_bill, flops, seconds, whole
from cil.report.grouping import Group, grouped
from cil.report.section import ReadingAid, Section, Sections
from cil.tracking import Record

INTRODUCTION = (
    "A learner meets the classes in portions, one experience after the other, and carries nothing across a boundary "
    "but what is charged in the bill. It is evaluated from exactly that. Rows are compared inside one table only: same "
    "images in the same order, same budget, same precision and kind of device."
)
TERMS = (
    ("n", "Seeds that finished. Numbers are means over them, ± one sample standard deviation (n − 1)."),
    ("Avg %", "Average incremental accuracy: on all classes seen, after each experience; then the mean of these."),
    ("Last %", "Accuracy on all classes after the last experience."),
    ("forgetting", "Highest accuracy an experience once had less its last one, mean over experiences; less is better."),
    ("tuning", "How settings were chosen; tuning FLOPs: of all trials with their validation, beside those of the run."),
    ("exact B", "Every byte that crosses the last boundary: weights, buffers, exemplars, labels, statistics..."),
    ("survey B", "What Zhou et al. 2024 charge: backbones needed at inference, 4 bytes a parameter, and raw pixels."),
    ("own", "The same without public weights, which are referred to and not modified."),
    ("FLOPs", "Of everything but evaluation, all experiences; a multiply-add counts two."),
    ("peak B", "Most bytes held at once in training: what is carried, optimizer, gradients, activations, teachers."),
    ("seconds", "Wall-clock time of the whole run on the machine it ran on; compare only on equal machines."),
    ("bound", "A learner that may look back at all past data: what could be reached, not a competitor."),
    ("uses less", "Keeps no exemplars, and carries less than the limit; without one, less than all rows with some."),
    ("best", "Called only where two seeds or more support it against every other row: a paired t-test on shared seeds "
             "(5 %), or 95 % intervals that do not overlap."),
)  # fmt: skip


def sections(records: Sequence[Record]) -> Sections:
    """Sections of class-incremental records.

    Runs that differ in their seed alone are one row. Rows are compared, and a best one called, only inside a section:
    same data, class orders, budget, precision and kind of device. Bounds, unfinished runs and runs over their budget
    are shown and never ranked.
    """
    groups = grouped(records)
    empty = [group for group in groups if not _has_results(group)]
    tables = class_tables(group for group in groups if _has_results(group))
    found = [_section(table, number, len(tables) > 1) for number, table in enumerate(tables, 1)]
    return Sections(
        sections=(*found, *map(curves_section, budget_curves(tables))),
        reading=_reading(tables),
        warnings=tuple(_differences(tables)),
        footnotes=tuple(_without_results(empty)),
    )


def _has_results(group: Group) -> bool:
    """True if a run has anything to show: an experience that was evaluated, or the bills it was refused for."""
    return any(run.done or (run.status == "over_budget" and run.result("bills")) for run in group.runs)


def _without_results(groups: Sequence[Group]) -> Iterable[str]:
    """A footnote on runs that ended, or still are, before the first boundary."""
    met = Counter(f"{run.learner} {run.status.replace('_', ' ')}" for group in groups for run in group.runs)
    if met:
        words = [f"{what} ({count} runs)" if count > 1 else what for what, count in sorted(met.items())]
        yield f"No row, because no result yet: {', '.join(words)}."


def _differences(tables: Sequence[ClassTable]) -> Iterable[str]:
    """Say so where tables must not be compared, and what they differ in."""
    if len(tables) < 2:
        return
    yield f"{len(tables)} settings, each with its own table: numbers of different tables are not to be compared."
    keys = ("stream", "data", "class order", "fingerprint", "images", "budget", "precision", "device")
    numbers: dict[str, list[str]] = {}
    for number, table in enumerate(tables[1:], 2):
        changed = [key for key in keys if table.facts.get(key) != tables[0].facts.get(key)]
        if "class order" in changed and "fingerprint" in changed:
            changed.remove("fingerprint")
        numbers.setdefault(", ".join(changed) or "the way the budget is counted", []).append(str(number))
    for changed_keys, which in numbers.items():
        subject = f"Table {which[0]} differs" if len(which) == 1 else f"Tables {', '.join(which)} differ"
        yield f"{subject} from table 1 in: {changed_keys}."


def _section(table: ClassTable, number: int, several: bool) -> Section:
    bills = [(convention, _bill(table, convention)) for convention in CONVENTIONS]
    inside = anytime_table(table.rows)
    identity = {"table": number, "budget": table.facts.get("budget"), "title": f"{table.stream}; {table.budget}"}
    entries = tuple(identity | row.entry() | (anytime_entry(row) if inside else {}) for row in table.rows)
    details = [{**entry, **_structure(row)} for entry, row in zip(entries, table.rows, strict=True)]
    return Section(
        title=table.stream,
        subtitle=table.budget,
        condition="Budget",
        number=number if several else 0,
        labels=tuple(row.label for row in table.rows),
        facts=table.facts,
        grid=_grid(table),
        best={f"{verdict.metric} %": verdict.winner for verdict in table.verdicts if verdict.winner},
        tables=() if inside is None else (inside,),
        bills=tuple(
            Titled(f"Bytes carried after the last experience, {convention}", bill)
            for convention, bill in bills
            if bill.lines
        ),
        verdicts=table.verdicts,
        remarks=tuple(_remarks(table)),
        warnings=table.warnings,
        entries=entries,
        content={"rows": details},
        plots=partial(plots, table),
    )


def _grid(table: ClassTable) -> Grid:
    parts = []
    for standing, heading in STANDINGS.items():
        rows = table.of(standing)
        lines = tuple(Line(row.label, _cells(row, table), tuple(note.mark for note in row.notes)) for row in rows)
        parts += [(heading, lines)] if lines else []
    return Grid("strategy", tuple(parts))


def _cells(row: ClassRow, table: ClassTable) -> dict[str, str]:
    cells = {
        "n": str(len(row.seeds)) if row.finished else "0",
        "Avg %": str(row.average),
        "Last %": str(row.last),
        "forgetting": str(row.forgetting),
    }
    if table.tuned:
        cells |= {"tuning": row.tuning, "tuning FLOPs": flops(row.tuning_flops)}
    cells |= {"exemplars": whole(row.exemplars)}
    cells |= {f"{convention} B": whole(row.carried[convention]) for convention in CONVENTIONS}
    if table.public:
        cells |= {f"own {convention} B": whole(row.own[convention]) for convention in CONVENTIONS}
    cells |= {cap.head: str(cap) for cap in row.caps}
    return cells | {
        "FLOPs": flops(row.flops),
        "peak B": whole(row.peak_training_bytes),
        "seconds": seconds(row.seconds),
    }


def _bill(table: ClassTable, convention: str) -> Grid:
    """Carried bytes by kind at the end of the stream, and in all."""
    rows = [row for row in table.rows if row.carried[convention] is not None]
    return byte_bill(
        "strategy",
        [
            (
                row.label,
                row.kinds[convention],
                {**({"public": row.public} if table.public else {}), "total": row.carried[convention]},
            )
            for row in rows
        ],
    )


def _remarks(table: ClassTable) -> Iterable[str]:
    """Sentences on rows; what holds for several is said once."""
    labels: dict[str, list[str]] = {}
    for row in table.rows:
        for note in row.notes:
            labels.setdefault(note.text, []).append(row.label)
    return [f"{', '.join(names)}: {text}" for text, names in labels.items()]


def _structure(row: ClassRow) -> dict[str, Any]:
    """What JSON has besides the flat entry."""
    values = {name: {str(seed): value for seed, value in score.values.items()} for name, score in row.scores.items()}
    return {"seeds": row.seeds, "bytes_by_kind": row.kinds, "values": values}


def _reading(tables: Sequence[ClassTable]) -> ReadingAid:
    """The terms that these tables use."""
    rows = [row for table in tables for row in table.rows]
    used = {
        "tuning": any(table.tuned for table in tables),
        "own": any(table.public for table in tables),
        "bound": any(row.standing == "bound" for row in rows),
        "uses less": any(note.mark == "uses less" for row in rows for note in row.notes),
    }
    terms = tuple((term, text) for term, text in TERMS if used.get(term, True))
    return ReadingAid("How to read this", INTRODUCTION, terms + (ANYTIME_TERMS if any(map(evaluated, rows)) else ()))

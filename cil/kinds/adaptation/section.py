"""Adaptation runs in a report: online error by domain, bytes and seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from cil.kinds.adaptation.plots import plots
from cil.kinds.adaptation.rows import AdaptationTable, adaptation_tables
from cil.report.grids import Grid, Line, Titled, byte_bill, decimal, grid, scores_entry, whole
from cil.report.section import ReadingAid, Section, Sections
from cil.tracking import Record

INTRODUCTION = (
    "A trained network meets test images whose look changes without notice, and may change itself batch by batch; it "
    "is told neither labels nor where a domain ends. What it holds at the end of a segment is all that it goes on "
    "with. Rows are compared inside one table only: same images in the same order, same source."
)
TERMS = (
    ("n", "Seeds that finished. Numbers are means over them, ± one sample standard deviation (n − 1)."),
    ("error, mean %", "Online error of every domain, their unweighted mean. Images are predicted once, on arrival."),
    ("carried B", "Every byte that the method holds between two batches: weights, statistics, teachers, moments..."),
    ("peak B", "The same, and what an update needs besides: values kept for the backward pass, gradients."),
    ("s / batch", "Seconds of predicting and updating, without reading images; compare only on equal machines."),
    ("clean", "Error on clean images: before, and after the stream, of a copy that meets them as one domain more."),
    ("best", "Called only where two seeds or more support it against every other row: a paired t-test on shared seeds "
             "(5 %), or 95 % intervals that do not overlap."),
)  # fmt: skip


def sections(records: Sequence[Record]) -> Sections:
    """Sections of adaptation records."""
    tables = adaptation_tables(records)
    found = [_section(table, number, len(tables) > 1) for number, table in enumerate(tables, 1)]
    terms = tuple((term, text) for term, text in TERMS if term != "clean" or any(table.clean for table in tables))
    return Sections(tuple(found), ReadingAid("How to read adaptation runs", INTRODUCTION, terms))


def _section(table: AdaptationTable, number: int, several: bool) -> Section:
    winner = table.verdict and table.verdict.winner
    return Section(
        title=table.title,
        subtitle=f"source {table.source}",
        number=number if several else 0,
        labels=tuple(row.label for row in table.rows),
        facts=table.facts,
        grid=_grid(table),
        best={"error, mean %": winner} if winner else {},
        bills=(Titled("Bytes after the last segment, and with what an update holds besides", _bill(table)),),
        verdicts=() if table.verdict is None else (table.verdict,),
        remarks=tuple(f"{row.label}: {row.remark}" for row in table.rows if row.remark),
        warnings=table.warnings,
        entries=tuple(_entries(table, number)),
        plots=partial(plots, table),
    )


def _grid(table: AdaptationTable) -> Grid:
    lines = []
    for row in table.rows:
        cells = {
            "n": str(len(row.seeds)),
            "error, mean %": str(row.mean),
            "carried B": whole(row.carried),
            "peak B": whole(row.peak_training),
            "s / batch": decimal(row.seconds_per_batch, 3),
        }
        if table.clean:
            cells |= {f"clean {when} %": str(error) for when, error in zip(("before", "after"), row.clean, strict=True)}
        # one decimal, without deviation: there are many domains
        cells |= {name: decimal(error.mean) for name, error in zip(table.domains, row.domains, strict=True)}
        lines.append(Line(row.label, cells, ("incomplete",) if row.remark else ()))
    return grid("adapter", lines)


def _bill(table: AdaptationTable) -> Grid:
    """Bytes by kind that are carried at the end of the stream, and what an update needs besides."""
    rows = [row for row in table.rows if row.carried is not None]
    return byte_bill(
        "adapter",
        [(row.label, row.kinds, {"carried": row.carried, "with an update": row.peak_training}) for row in rows],
    )


def _entries(table: AdaptationTable, number: int) -> Iterable[dict[str, Any]]:
    """One flat entry a row, numbers unrounded."""
    for row in table.rows:
        before, after = row.clean
        scores = {"mean_error": row.mean, "clean_error_before": before, "clean_error_after": after}
        errors = {f"error_{name}": error for name, error in zip(table.domains, row.domains, strict=True)}
        yield {
            "table": number,
            "title": f"{table.title}; source {table.source}",
            "label": row.label,
            "n": len(row.seeds),
            "seeds": " ".join(map(str, row.seeds)),
            **scores_entry(scores),
            "carried_bytes": row.carried,
            "peak_training_bytes": row.peak_training,
            "seconds_per_batch": row.seconds_per_batch,
            "remark": row.remark,
            **scores_entry(errors),
        }

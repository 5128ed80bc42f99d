"""The part of a report: a table, verdicts, a plot, and how to read them. Rows are those of class-incremental runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from cil.kinds.classes.rows import by_standing, class_rows, ranked
from cil.kinds.classes.section import stream_words
from cil.report import ReadingAid, Score, Section, Sections, verdict
from cil.report.grids import scores_entry, whole
from cil.report.grouping import Group, budget_words, by_budget, comparisons, grouped
from cil.report.plots import Picture, draw_plots, figure_of, legend, line_style
from cil.report.rows import Row, remarks
from cil.report.settings_list import computing, known, one_seed
from cil.tracking import Record

LAST = ("recall_at_1", -1)
COLUMNS: dict[str, tuple[str | int, ...]] = {  # heading: path in the results
    "last recall@1 %": LAST,
    "last mAP %": ("mean_average_precision", -1),
    "average recall@1 %": ("average_recall_at_1",),
    "average mAP %": ("average_mean_average_precision",),
}
AID = ReadingAid(
    "How to read retrieval runs",
    "A learner meets classes in portions, and is asked for images and not for names: of the test images of all classes "
    "seen, half are a gallery in which the others are looked up. Rows are compared inside one table only.",
    (
        ("recall@1", "Queries whose nearest image has their class. Near: a high cosine of the features."),
        ("mAP", "Mean over queries of the average precision of the whole gallery, ranked by how near it is."),
        ("last, average", "After the last experience; the mean over all experiences."),
        ("exact B", "Every byte that crosses the last boundary; the gallery is test data, and not carried."),
    ),
)


def sections(records: Sequence[Record]) -> Sections:
    """One table for each stream and budget."""
    settings = [same for alike in comparisons(grouped(records)) for same in by_budget(alike)]
    found = [_section(groups, place if len(settings) > 1 else 0) for place, groups in enumerate(settings, 1)]
    return Sections(tuple(found), AID)


def _section(groups: Sequence[Group], number: int) -> Section:
    rows = sorted(class_rows(groups), key=lambda row: -(row.score(*LAST).mean or 0.0))
    shown = [row for row in rows if row.runs]
    first, competing = groups[0].first, ranked(rows)
    verdicts = [verdict(head, {row.label: row.score(*path) for row in competing}) for head, path in COLUMNS.items()]
    return Section(
        title=f"Retrieval: {stream_words(first)}",
        subtitle=budget_words(first.budget),
        number=number,
        rows=tuple(rows),
        facts=known(computing([first])),
        grid=by_standing(rows, _cells),
        best={one.metric: one.winner for one in verdicts if one.winner},
        verdicts=tuple(verdicts) if len(competing) > 1 else (),
        remarks=remarks(rows),
        warnings=tuple(one_seed(rows)),
        entries=tuple({"label": row.label} | scores_entry(_scores(row)) | row.caps_entry for row in rows),
        plots=lambda place, paint: draw_plots(place, partial(_curve, shown, first.steps, paint)) if shown else [],
    )


def _scores(row: Row) -> dict[str, Score]:
    return {head: row.score(*path) for head, path in COLUMNS.items()}


def _cells(row: Row) -> dict[str, str]:
    scores = {head: str(score) for head, score in _scores(row).items()}
    return {"n": str(len(row.runs))} | scores | {"exact B": whole(row.carried())} | row.caps_cells


def _curve(rows: Sequence[Row], steps: int, paint: Mapping[str, str]) -> Picture:
    figure, (axes,) = figure_of(3.9)
    for place, row in enumerate(rows):
        recall = [row.score("recall_at_1", step).mean or 0.0 for step in range(steps)]
        axes.plot(range(1, steps + 1), recall, **line_style(paint[row.label], place, row.bound), label=row.label)
    axes.set(xlabel="experiences learned", ylabel="recall@1, %", ylim=(0, 100))
    legend(axes)
    return "Recall over experiences", "Among all classes seen by then. Mean over seeds.", figure

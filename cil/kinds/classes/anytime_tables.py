"""Runs that are evaluated inside experiences: any-time metrics as a table of their own, and the curve behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cil.report.grids import Line, Titled, grid, scores_entry
from cil.report.plots import INK, WIDTH, Picture, figure_of, legend, line_style, row_colour
from cil.report.rows import Row
from cil.report.verdicts import Score

COLUMNS = {  # heading: path in ``results.anytime``
    "AAA %": ("average_anytime_accuracy",),
    "min-ACC %": ("min_accuracy",),
    "WC-ACC %": ("worst_case_accuracy",),
    "stability gap": ("stability_gap",),
    "WF10": ("windowed_forgetting", "10"),
    "WP10": ("windowed_plasticity", "10"),
    "WF100": ("windowed_forgetting", "100"),
    "WP100": ("windowed_plasticity", "100"),
    "A_AUC %": ("a_auc",),
    "online %": ("online_accuracy",),
}
TERMS = (
    ("AAA %", "Average any-time accuracy: mean over evaluations of the mean over the experiences seen by then."),
    ("min-ACC %", "Mean over earlier experiences of the lowest accuracy each has had since it was learned."),
    ("WC-ACC %", "Worst case: the newest experience as it is, earlier ones at their lowest (De Lange et al. 2023)."),
    ("stability gap", "Accuracy on an experience at its end less the lowest one while the next is learned; mean over "
                      "pairs of neighbours, in points. Less is better."),
    ("WF10, WP10", "Largest fall, and largest rise, within 10 evaluations that follow each other, in points, mean over "
                   "experiences; 100 likewise. They depend on how often is evaluated."),
    ("A_AUC %", "Mean height of the accuracy on the classes exposed so far, over samples (Koh et al. 2022)."),
    ("online %", "Of images of a single pass, answered when they arrive, before they are learned."),
)  # fmt: skip


def anytime_scores(row: Row) -> dict[str, Score]:
    """The any-time metrics of a row by heading, those that no run of it knows left out."""
    found = {head: row.score("anytime", *path) for head, path in COLUMNS.items()}
    return {head: one for head, one in found.items() if any(value is not None for value in one.values.values())}


def anytime_table(rows: Sequence[Row]) -> Titled | None:
    """One line for each row that was evaluated inside experiences; None where none was."""
    met = {row.label: (how, anytime_scores(row)) for row in rows if (how := evaluated(row))}
    if not met:
        return None
    ways = list(dict.fromkeys(how for how, _ in met.values()))
    known = [head for head in COLUMNS if any(head in scores for _, scores in met.values())]
    lines = [
        Line(label, ({"evaluated": how} if len(ways) > 1 else {}) | {h: str(scores.get(h, Score({}))) for h in known})
        for label, (how, scores) in met.items()
    ]
    if len(ways) == 1:
        return Titled(f"Inside experiences: evaluated {ways[0]}", grid("strategy", lines))
    unlike = "Rows were evaluated differently: these numbers depend on how often."
    return Titled("Inside experiences", grid("strategy", lines), unlike)


def evaluated(row: Row) -> str:
    """For example ``every 5 steps, on 100 test images of each experience``; empty where it was not."""
    found = row.runs[0].result("anytime") if row.runs else None
    if not found:
        return ""
    unit = found["unit"] if found["every"] != 1 else found["unit"].removesuffix("s")
    each = f"every {found['every']} {unit}" if found["every"] != 1 else f"every {unit}"
    return each if found.get("images") is None else f"{each}, on {found['images']} test images of each experience"


def anytime_entry(row: Row) -> dict[str, Any]:
    """The same with keys for CSV and JSON, numbers unrounded, None where undefined."""
    found = (row.runs[0].result("anytime") if row.runs else None) or {}
    entry: dict[str, Any] = {f"anytime_{name}": found.get(name) for name in ("every", "unit", "images")}
    scores = anytime_scores(row)
    return entry | scores_entry(
        {"_".join(("anytime", *path)): scores.get(head, Score({})) for head, path in COLUMNS.items()}
    )


def anytime_picture(rows: Sequence[Row], paint: Mapping[str, str]) -> Picture | None:
    """Accuracy over the steps of the optimizer; rows whose seeds were evaluated at other steps show their first."""
    rows = [row for row in rows if evaluated(row)]
    if not rows:
        return None
    figure, (axes,) = figure_of(4.2, width=1.7 * WIDTH)
    ends: set[int] = set()
    for place, row in enumerate(rows):
        found = [run.result("anytime") for run in row.runs]
        alike = [one for one in found if one["updates"] == found[0]["updates"]]
        centre = [_mean(values) for values in zip(*(one["accuracy"] for one in alike), strict=True)]
        style = line_style(row_colour(row, paint), place, dashed=row.bound)
        many = len(centre) > 60
        axes.plot(found[0]["updates"], centre, **(style | ({"marker": ""} if many else {})), label=row.label)
        pairs = zip(found[0]["experiences"], found[0]["updates"], strict=True)
        last = dict(pairs)  # of each experience the last evaluation, at its end
        ends |= {last[index] for index in sorted(last)[:-1]}
    for end in sorted(ends) if len(ends) <= 60 else ():
        axes.axvline(end, color=INK, linewidth=0.6, linestyle=":", zorder=0)
    axes.set(ylim=(0, 100), xlabel="optimizer steps", ylabel="accuracy on the classes exposed so far, %")
    legend(axes)
    caption = "Evaluated inside experiences; dotted: their ends. Mean over seeds that were evaluated at the same steps."
    return "Accuracy inside experiences", caption, figure


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan

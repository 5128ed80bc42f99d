"""Plots of class-incremental runs: accuracy over the stream and against bytes, forgetting, bills, matrices."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from cil.kinds.classes.analysis_plots import analysis_plots
from cil.kinds.classes.anytime_tables import anytime_picture
from cil.kinds.classes.learned_bytes import learned_bytes_picture
from cil.kinds.classes.rows import FORGETTING, LAST
from cil.report.bills import BILLS
from cil.report.grids import kinds_of_bytes
from cil.report.grouping import MIB
from cil.report.plots import (
    BESIDE,
    BOUND,
    INK,
    ON_DARK,
    ON_LIGHT,
    WIDTH,
    Picture,
    Plot,
    band,
    bars,
    dot_style,
    draw_plots,
    figure_of,
    legend,
    line_style,
    row_colour,
)
from cil.report.rows import Row
from cil.report.runs import conventions_of
from cil.report.verdicts import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS_A_LINE = 6  # of the legend below several bills
KIND_COLOURS = {
    "parameters": "#0072b2",
    "buffers": "#56b4e9",
    "exemplars": "#e69f00",
    "labels": "#8c510a",
    "features": "#d55e00",
    "prototypes": "#cc79a7",
    "statistics": "#009e73",
    "replay_logits": "#6a3d9a",
    "optimizer": "#35978f",
    "teacher": "#b07aa1",
    "other": "#9aa5b1",
}
TICKS = 12  # experiences up to which each has its mark
TITLE = 32  # letters of a line above a heat map
CELLS_WITH_TEXT = 12  # experiences up to which a heat map prints its numbers


def plots(rows: Sequence[Row], limit: int | None, convention: str, number: int, paint: Mapping[str, str]) -> list[Plot]:
    """All plots that rows have numbers for; unfinished ones have none.

    Args:
        limit: Bytes allowed at the end of the stream, counted by ``convention``.
    """
    known = [row for row in rows if row.runs and all(run.result("accuracy_curve") for run in row.runs)]
    if not known:
        return []
    return draw_plots(
        number,
        partial(_accuracy_curves, known, paint),
        partial(anytime_picture, known, paint),
        partial(_accuracy_against_bytes, known, limit, convention, paint),
        partial(learned_bytes_picture, known, paint),
        partial(_forgetting_bars, known, paint),
        partial(_bytes_by_kind, rows, limit, convention),
        partial(_accuracy_matrices, known),
        *analysis_plots(known, paint),
        labels=paint,
    )


def _accuracy_curves(rows: Sequence[Row], paint: Mapping[str, str]) -> Picture | None:
    figure, (axes,) = figure_of(4.2, width=1.7 * WIDTH)
    sizes = [len(slots) for slots in rows[0].runs[0].stream.get("new_slots") or []]
    for place, row in enumerate(rows):
        curves = [_numbers(run.result("accuracy_curve")) for run in row.runs]
        steps = min(map(len, curves))
        classes = [sum(sizes[: step + 1]) if sizes else step + 1 for step in range(steps)]
        columns = [[curve[step] for curve in curves] for step in range(steps)]
        centre = [sum(column) / len(column) for column in columns]
        style = line_style(row_colour(row, paint), place, dashed=row.bound)
        axes.plot(classes, centre, **style, label=row.label)
        if len(curves) > 1:
            std = [Score(dict(enumerate(column))).std or 0.0 for column in columns]
            band(axes, classes, centre, std, style["color"], row.label)
    axes.set_ylim(0, 100)
    if len(sizes) <= TICKS:
        axes.set_xticks([sum(sizes[: step + 1]) for step in range(len(sizes))] or axes.get_xticks())
    axes.set(xlabel="classes seen" if sizes else "experiences", ylabel="accuracy on all classes seen, %")
    legend(axes)
    caption = (
        "After each experience, on the test images of all classes seen. Line: mean over seeds; band: one standard "
        "deviation. Grey and dashed: bounds."
    )
    return "Accuracy over the stream", caption, figure


def _accuracy_against_bytes(
    rows: Sequence[Row], limit: int | None, convention: str, paint: Mapping[str, str]
) -> Picture | None:
    """Each row as a point: what it carries against what it knows at the end."""
    points = [
        (row, carried / MIB, score.mean, score.std or 0.0)
        for row in rows
        if (carried := row.carried(convention)) and (score := row.score(LAST)).mean is not None
    ]
    if len(points) < 2:
        return None
    figure, (axes,) = figure_of(3.9)
    for place, (row, size, last, std) in enumerate(points):
        style = dot_style(row_colour(row, paint), place)
        axes.plot([size], [last], **style, label=row.label)
        axes.errorbar([size], [last], yerr=[std], color=style["color"], capsize=3, elinewidth=1.2)
    if limit is not None:
        axes.axvline(limit / MIB, color=INK, linewidth=1, linestyle=":", label="limit")
    sizes = [size for _, size, _, _ in points]
    if max(sizes) > 20 * min(sizes):
        axes.set_xscale("log")
    else:
        axes.locator_params(axis="x", nbins=4)  # sizes that are nearly the same have long numbers
    axes.set(xlabel=f"carried after the last experience, MiB ({convention})", ylabel="last accuracy, %")
    axes.margins(x=0.08, y=0.12)
    legend(axes)
    return "Last accuracy against bytes", "Bars: one standard deviation over seeds. Up and left is better.", figure


def _forgetting_bars(rows: Sequence[Row], paint: Mapping[str, str]) -> Picture | None:
    known = [(row, score) for row in rows if (score := row.score(FORGETTING)).mean is not None]
    if not known:
        return None
    figure, (axes,) = bars([row.label for row, _ in known])
    for place, (row, score) in enumerate(reversed(known)):
        mean, std = score.mean or 0.0, score.std
        axes.barh(place, mean, height=0.62, color=row_colour(row, paint))
        if std is not None:
            axes.errorbar(mean, place, xerr=std, color=INK, capsize=2, elinewidth=1)
        axes.annotate(str(score), (max(mean + (std or 0.0), 0.0), place), (6, 0), **BESIDE)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.margins(x=0.25)
    axes.set_xlabel("forgetting, points of accuracy")
    caption = "Highest accuracy that an experience once had less its last one, mean over experiences (Chaudhry 2018). "
    return "Forgetting", caption + "Less is better; bars: one standard deviation over seeds.", figure


def _bytes_by_kind(rows: Sequence[Row], limit: int | None, counted: str) -> Picture | None:
    """All bills side by side, of all rows that have one."""
    conventions = conventions_of(run for row in rows for run in row.group.runs)
    rows = [row for row in rows if any(map(row.carried, conventions))]
    if not rows:
        return None
    figure, panels = bars([row.label for row in rows], len(conventions))
    sizes = {convention: [row.bytes_by_kind(convention) for row in reversed(rows)] for convention in conventions}
    kinds = kinds_of_bytes(kinds for found in sizes.values() for kinds in found)
    for axes, convention in zip(panels, conventions, strict=True):
        left = [0.0] * len(rows)
        for kind in kinds:
            widths = [found.get(kind, 0) / MIB for found in sizes[convention]]
            axes.barh(range(len(rows)), widths, left=left, height=0.62, color=KIND_COLOURS.get(kind, BOUND), label=kind)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for place, row in enumerate(reversed(rows)):
            total = row.carried(convention)
            axes.annotate("" if total is None else f"{total:,} B", (left[place], place), (6, 0), **BESIDE)
        own = limit if counted == convention else None
        if own is not None:
            axes.axvline(own / MIB, color=INK, linewidth=1.2, linestyle=":", label="limit")
        axes.set_xlim(0, (1.3 if len(conventions) == 1 else 1.5) * max([*left, (own or 0) / MIB]))  # room for totals
        axes.set_xlabel(f"MiB, {convention}")
    axes = panels[conventions.index(counted)]
    single = len(conventions) == 1
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside right center" if single else "outside lower center",
        ncols=1 if single else KINDS_A_LINE, frameon=False, fontsize=9,
    )  # fmt: skip
    said = " ".join(f"{name.capitalize()}: {BILLS[name]}" for name in conventions if name in BILLS)
    return "Carried bytes by kind", f"After the last experience. {said}", figure


def _accuracy_matrices(rows: Sequence[Row]) -> Picture | None:
    rows = [row for row in rows if row.runs[0].result("accuracy_matrix")]
    if not rows:
        return None
    from matplotlib.figure import Figure

    across = min(4, len(rows))
    down = math.ceil(len(rows) / across)
    figure = Figure(figsize=(2.9 * across + 0.8, 2.9 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for axes, row in zip(grid.flat, rows, strict=False):
        runs = [[_numbers(line) for line in run.result("accuracy_matrix")] for run in row.runs]
        lines = [[sum(cell) / len(cell) for cell in zip(*line, strict=True)] for line in zip(*runs, strict=True)]
        picture = _heat_map(axes, lines, row.label)
    for axes in list(grid.flat)[len(rows) :]:
        axes.set_axis_off()
    figure.colorbar(picture, ax=list(grid.flat), shrink=0.9 / down, aspect=25, label="accuracy, %", pad=0.02)
    caption = "Row: after learning this experience. Column: test images of that experience. Mean over seeds."
    return "Accuracy by experience", caption, figure


def _heat_map(axes: Axes, matrix: list[list[float]], label: str) -> Any:
    size = len(matrix[0])
    picture = axes.pcolormesh(matrix, vmin=0, vmax=100, cmap="YlGnBu", edgecolors="white", linewidth=0.6)
    axes.set_title(textwrap.fill(label, TITLE), fontsize=10, color=INK)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    every = max(1, math.ceil(size / 10))
    ticks = list(range(0, size, every))
    axes.set_xticks([tick + 0.5 for tick in ticks], [str(tick) for tick in ticks])
    axes.set_yticks([tick + 0.5 for tick in ticks if tick < len(matrix)], [str(t) for t in ticks if t < len(matrix)])
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    if size <= CELLS_WITH_TEXT:
        for i, line in enumerate(matrix):
            for j, value in enumerate(line):
                if not math.isnan(value):
                    shade = ON_DARK if value > 55 else ON_LIGHT
                    font = 8 if size <= 8 else 6
                    axes.text(j + 0.5, i + 0.5, f"{value:.0f}", ha="center", va="center", color=shade, fontsize=font)
    return picture


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]

"""Plots of task-stream runs: the front of error and operations first, how they grow, and the stream itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from cil.kinds.tasks.rows import TaskRow
from cil.kinds.tasks.timeline import Task, timeline_picture
from cil.report.plots import INK, WIDTH, Picture, Plot, dot_style, draw_plots, figure_of, legend, line_style, row_colour


def plots(rows: Sequence[TaskRow], tasks: Sequence[Task], number: int, paint: Mapping[str, str]) -> list[Plot]:
    """The front of error and operations before the table; below it how both grow over the stream, and the stream."""
    known = [row for row in rows if row.error.mean is not None]
    stream = partial(timeline_picture, tasks)
    if not known:
        return draw_plots(number, stream)
    over_stream = partial(_over_stream, known, paint)
    return draw_plots(number, partial(_front, known, paint), over_stream, stream, leads=1, labels=paint)


def _front(rows: Sequence[TaskRow], paint: Mapping[str, str]) -> Picture:
    figure, (axes,) = figure_of(4.6, width=1.7 * WIDTH)
    front = sorted((row.spent, row.error.mean or 0.0) for row in rows if row.front)
    if front:
        x, y = zip(*front, (max(row.spent for row in rows), front[-1][1]), strict=True)
        axes.step(x, y, where="post", color=INK, linewidth=1.2, linestyle=":", label="front", zorder=1)
    for place, row in enumerate(rows):
        style = dot_style(row_colour(row, paint), place)
        axes.errorbar(
            [row.spent], [row.error.mean or 0.0], yerr=[row.error.std or 0.0], **style, capsize=3, elinewidth=1.2,
            label=row.label,
        )  # fmt: skip
    _logarithmic(axes, [row.spent for row in rows])
    axes.set(xlabel="operations over the stream, search and validation included", ylabel="mean error E, %")
    axes.margins(x=0.08, y=0.12)
    legend(axes)
    caption = (
        "Down and left is better. Bars: one standard deviation over seeds; dotted: rows that no other one beats in "
        "both. Grey: bounds."
    )
    return "Error against compute", caption, figure


def _over_stream(rows: Sequence[TaskRow], paint: Mapping[str, str]) -> Picture:
    figure, (axes,) = figure_of(4.2, width=1.7 * WIDTH)
    for place, row in enumerate(rows):
        errors = [score.mean or 0.0 for score in row.errors]
        running = [sum(errors[: index + 1]) / (index + 1) for index in range(len(errors))]
        style = line_style(row_colour(row, paint), place, dashed=row.bound)
        axes.plot(row.so_far, running, **style, label=row.label)
    _logarithmic(axes, [value for row in rows for value in row.so_far])
    axes.set(xlabel="operations so far, search and validation included", ylabel="mean error of the tasks so far, %")
    legend(axes)
    return "The stream, task by task", f"A point a task, {rows[0].tasks} in all. Means over seeds.", figure


def _logarithmic(axes: Any, values: Sequence[float]) -> None:
    known = [value for value in values if value > 0]
    if known and len(known) == len(values) and max(known) > 8 * min(known):
        axes.set_xscale("log")

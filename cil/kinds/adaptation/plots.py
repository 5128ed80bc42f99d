"""Plots of adaptation runs: error over time, and mean error against bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from cil.report.grouping import MIB
from cil.report.plots import WIDTH, Picture, Plot, band, dot_style, draw_plots, figure_of, legend, line_style
from cil.report.rows import Row


def plots(rows: Sequence[Row], segments: Sequence[str], number: int, paint: Mapping[str, str]) -> list[Plot]:
    """Error over time, and mean error against bytes."""
    known = [row for row in rows if row.score("mean_error").mean is not None]
    if not known:
        return []
    return draw_plots(
        number, partial(_over_time, known, segments, paint), partial(_against_bytes, known, paint), labels=paint
    )


def _over_time(rows: Sequence[Row], segments: Sequence[str], paint: Mapping[str, str]) -> Picture:
    figure, (axes,) = figure_of(4.6, width=1.7 * WIDTH)
    places = list(range(len(segments)))
    for place, row in enumerate(rows):
        columns = [row.score("segment_errors", segment) for segment in places]
        style = line_style(paint[row.label], place)
        centre = [column.mean or 0.0 for column in columns]
        axes.plot(places, centre, **style, label=row.label)
        if len(row.runs) > 1:
            band(axes, places, centre, [column.std or 0.0 for column in columns], style["color"], row.label)
    every = max(1, len(places) // 30)
    axes.set_xticks(places[::every], segments[::every], rotation=55, ha="right", fontsize=8)
    axes.set(ylim=(0, None), ylabel="online error, %")
    legend(axes)
    return "Error over time", "Of each segment, in order of arrival. Mean over seeds; band: one deviation.", figure


def _against_bytes(rows: Sequence[Row], paint: Mapping[str, str]) -> Picture:
    figure, (axes,) = figure_of(3.9)
    for place, row in enumerate(rows):
        style = dot_style(paint[row.label], place)
        axes.plot(
            [(row.peak_training_bytes or 0) / MIB], [row.score("mean_error").mean or 0.0], **style, label=row.label
        )
    axes.set(xlabel="held at once during an update, MiB", ylabel="mean online error, %", xlim=(0, None))
    axes.margins(x=0.08, y=0.12)
    legend(axes)
    return "Error against memory", "Down and left is better.", figure

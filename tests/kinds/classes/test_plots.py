"""Figures as they are drawn."""

from __future__ import annotations

from itertools import pairwise

from matplotlib.backends.backend_agg import FigureCanvasAgg

from cil.kinds.classes.plots import _accuracy_against_bytes
from cil.report import table


def test_numbers_below_an_axis_of_nearly_equal_bytes_do_not_touch(run):
    (section,) = table([run("icarl", parameters=186_992), run("a_longer_name", parameters=187_352)]).sections
    _, _, figure = _accuracy_against_bytes(
        section.rows, None, "exact", {"icarl": "#000000", "a_longer_name": "#111111"}
    )
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    low, high = sorted(axes.get_xlim())
    shown = [tick.label1 for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    places = [label.get_window_extent() for label in shown]
    assert len(places) > 1 and all(left.x1 < right.x0 for left, right in pairwise(places))

"""Plots of a section, as SVG text that needs nothing from outside: same records, same bytes."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cil.report.anytime import anytime_plot
from cil.report.areas import Areas
from cil.report.section_forms import kinds_of
from cil.report.settings import MIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cil.report.rows import Row
    from cil.report.tables import Section

# Okabe and Ito's colours without yellow, then darker ones: told apart by most readers with a colour deficiency
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a3d9a", "#8c510a", "#35978f", "#7f7f7f")
MARKERS = "osD^vPX<>*"
INK, FAINT, BOUND = "#1f2933", "#d9dee4", "#52606d"
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
WIDTH = 6.4  # inches of a plot that shares its line
TICKS = 12  # experiences up to which each has its mark
CELLS_WITH_TEXT = 12  # experiences up to which a heat map prints its numbers


@dataclass(frozen=True)
class Plot:
    """A picture with its words.

    Attributes:
        svg: One ``<svg>`` element whose ids nothing else on a page has.
        broad: Whether it wants the whole width of a page.
    """

    title: str
    caption: str
    svg: str
    broad: bool = False


def colours(labels: Iterable[str]) -> dict[str, str]:
    """One colour for each label, the same wherever the same labels are shown."""
    return {label: COLOURS[index % len(COLOURS)] for index, label in enumerate(sorted(set(labels)))}


def section_plots(section: Section, number: int, paint: Mapping[str, str]) -> list[Plot]:
    """All plots that a section has numbers for.

    Args:
        number: Of the section on its page.
        paint: Colour of each label.
    """
    if not section.finished:
        return []
    with styled():
        made = [
            _accuracy_curves(section, paint),
            anytime_plot(section, paint),
            _accuracy_against_bytes(section, paint),
            _forgetting_bars(section, paint),
            _bytes_by_kind(section),
            _accuracy_matrices(section),
        ]
        return [
            Plot(title, caption, svg_of(figure, f"s{number}p{index}", title), figure.get_figwidth() > WIDTH)
            for index, (title, caption, figure) in enumerate(plot for plot in made if plot is not None)
        ]


def areas_plots(areas: Areas, number: int, paint: Mapping[str, str]) -> list[Plot]:
    """Average incremental and last accuracy over the budgets."""
    with styled():
        return [
            _areas_plot(areas, name, word, paint, f"a{number}{name}")
            for name, word in (("average", "Average incremental accuracy"), ("last", "Last accuracy"))
        ]


def _areas_plot(areas: Areas, name: str, word: str, paint: Mapping[str, str], prefix: str) -> Plot:
    figure, (axes,) = figure_of(3.9)
    for place, row in enumerate(areas.rows):
        scores = getattr(row, name)
        points = [(x, s.mean, s.std or 0.0) for x, s in zip(areas.mebibytes, scores, strict=True) if s and s.known]
        x, y, std = zip(*points, strict=True) if points else ((), (), ())
        axes.errorbar(x, y, yerr=std, **line_style(paint[row.label], place), label=row.label, capsize=2, elinewidth=1)
    axes.set_xlabel(f"budget, MiB of 2^20 bytes ({areas.convention})")
    axes.set_ylabel("accuracy, %")
    legend(axes)
    title = f"{word} against the budget"
    return Plot(title, "Mean over seeds; bars: one standard deviation.", svg_of(figure, prefix, title))


Made = tuple[str, str, "Figure"] | None


def _accuracy_curves(section: Section, paint: Mapping[str, str]) -> Made:
    figure, (axes,) = figure_of(4.2, width=1.7 * WIDTH)
    sizes = [len(slots) for slots in section.finished[0].runs[0].stream.get("new_slots") or []]
    for place, row in enumerate(section.finished):
        curves = [_numbers(run.result("accuracy_curve")) for run in row.runs]
        steps = min(map(len, curves))
        classes = [sum(sizes[: step + 1]) if sizes else step + 1 for step in range(steps)]
        columns = [[curve[step] for curve in curves] for step in range(steps)]
        centre = [sum(column) / len(column) for column in columns]
        bound = row.standing == "bound"
        style = line_style(BOUND if bound else paint[row.label], place, dashed=bound)
        axes.plot(classes, centre, **style, label=row.label)
        if len(curves) > 1:
            std = [_std(column) for column in columns]
            low = [mean - spread for mean, spread in zip(centre, std, strict=True)]
            high = [mean + spread for mean, spread in zip(centre, std, strict=True)]
            axes.fill_between(classes, low, high, color=style["color"], alpha=0.12, linewidth=0)
    axes.set_ylim(0, 100)
    if len(sizes) <= TICKS:
        axes.set_xticks([sum(sizes[: step + 1]) for step in range(len(sizes))] or axes.get_xticks())
    axes.set_xlabel("classes seen" if sizes else "experiences")
    axes.set_ylabel("accuracy on all classes seen, %")
    legend(axes)
    caption = (
        "After each experience, on the test images of all classes seen. Line: mean over seeds; band: one standard "
    )
    caption += "deviation. Grey and dashed: bounds."
    return "Accuracy over the stream", caption, figure


def _accuracy_against_bytes(section: Section, paint: Mapping[str, str]) -> Made:
    """Each row as a point: what it carries against what it knows at the end."""
    rows = [row for row in section.finished if row.carried[section.convention] and row.last.mean is not None]
    if len(rows) < 2:
        return None
    figure, (axes,) = figure_of(3.9)
    for place, row in enumerate(rows):
        x, y = (row.carried[section.convention] or 0) / MIB, row.last.mean or 0.0
        style = line_style(BOUND if row.standing == "bound" else paint[row.label], place)
        style |= {"linestyle": "none", "markersize": 9}
        axes.plot([x], [y], **style, label=row.label)
        axes.errorbar([x], [y], yerr=[row.last.std or 0.0], color=style["color"], capsize=3, elinewidth=1.2)
    if section.limit is not None:
        axes.axvline(section.limit / MIB, color=INK, linewidth=1, linestyle=":", label="limit")
    sizes = [row.carried[section.convention] or 0 for row in rows]
    if max(sizes) > 20 * min(sizes):
        axes.set_xscale("log")
    axes.set_xlabel(f"carried after the last experience, MiB ({section.convention})")
    axes.set_ylabel("last accuracy, %")
    axes.margins(x=0.08, y=0.12)
    legend(axes)
    return "Last accuracy against bytes", "Bars: one standard deviation over seeds. Up and left is better.", figure


def _forgetting_bars(section: Section, paint: Mapping[str, str]) -> Made:
    rows = [row for row in section.finished if row.forgetting.mean is not None]
    if not rows:
        return None
    figure, (axes,) = _bars(len(rows))
    for place, row in enumerate(reversed(rows)):
        colour = BOUND if row.standing == "bound" else paint[row.label]
        mean, std = row.forgetting.mean or 0.0, row.forgetting.std
        axes.barh(place, mean, height=0.62, color=colour)
        if std is not None:
            axes.errorbar(mean, place, xerr=std, color=INK, capsize=2, elinewidth=1)
        axes.annotate(str(row.forgetting), (max(mean + (std or 0.0), 0.0), place), (6, 0), **_BESIDE)
    axes.set_yticks(range(len(rows)), [row.label for row in reversed(rows)])
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.margins(x=0.25)
    axes.set_xlabel("forgetting, points of accuracy")
    caption = "Highest accuracy that an experience once had less its last one, mean over experiences (Chaudhry 2018). "
    return "Forgetting", caption + "Less is better; bars: one standard deviation over seeds.", figure


def _bytes_by_kind(section: Section) -> Made:
    """Both bills side by side, all rows that have one."""
    rows = [row for row in section.rows if row.carried["exact"] or row.carried["survey"]]
    if not rows:
        return None
    figure, panels = _bars(len(rows), 2)
    kinds = kinds_of(rows, ("exact", "survey"))
    for axes, convention in zip(panels, ("exact", "survey"), strict=True):
        left = [0.0] * len(rows)
        for kind in kinds:
            widths = [row.kinds[convention].get(kind, 0) / MIB for row in reversed(rows)]
            axes.barh(range(len(rows)), widths, left=left, height=0.62, color=_kind_colour(kind), label=kind)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for place, row in enumerate(reversed(rows)):
            total = row.carried[convention]
            axes.annotate("" if total is None else f"{total:,} B", (left[place], place), (6, 0), **_BESIDE)
        if section.limit is not None and section.convention == convention:
            axes.axvline(section.limit / MIB, color=INK, linewidth=1.2, linestyle=":", label="limit")
        axes.set_yticks(range(len(rows)), [row.label for row in reversed(rows)])
        axes.set_xlim(0, 1.3 * max([*left, (section.limit or 0) / MIB if section.convention == convention else 0.0]))
        axes.set_xlabel(f"MiB, {convention}")
    counted = next((axes for axes, name in zip(panels, ("exact", "survey"), strict=True) if name == section.convention))
    figure.legend(*counted.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    caption = "After the last experience. Exact: every byte that crosses the boundary. Survey: backbones needed at "
    return "Carried bytes by kind", caption + "inference and raw pixels, as Zhou et al. 2024 count.", figure


def _accuracy_matrices(section: Section) -> Made:
    rows = [row for row in section.finished if row.runs[0].result("accuracy_matrix")]
    if not rows:
        return None
    from matplotlib.figure import Figure

    across = min(4, len(rows))
    down = math.ceil(len(rows) / across)
    figure = Figure(figsize=(2.9 * across + 0.8, 2.9 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for axes, row in zip(grid.flat, rows, strict=False):
        picture = _heat_map(axes, _mean_matrix(row), row.label)
    for axes in list(grid.flat)[len(rows) :]:
        axes.set_axis_off()
    figure.colorbar(picture, ax=list(grid.flat), shrink=0.9 / down, aspect=25, label="accuracy, %", pad=0.02)
    caption = "Row: after learning this experience. Column: test images of that experience. Mean over seeds."
    return "Accuracy by experience", caption, figure


def _heat_map(axes: Axes, matrix: list[list[float]], label: str) -> Any:
    size = len(matrix[0])
    picture = axes.pcolormesh(matrix, vmin=0, vmax=100, cmap="YlGnBu", edgecolors="white", linewidth=0.6)
    axes.set_title(label, fontsize=10, color=INK)
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
                    shade = "white" if value > 55 else INK
                    font = 8 if size <= 8 else 6
                    axes.text(j + 0.5, i + 0.5, f"{value:.0f}", ha="center", va="center", color=shade, fontsize=font)
    return picture


def _mean_matrix(row: Row) -> list[list[float]]:
    matrices = [[_numbers(line) for line in run.result("accuracy_matrix")] for run in row.runs]
    return [[sum(values) / len(values) for values in zip(*lines, strict=True)] for lines in zip(*matrices, strict=True)]


# style ------------------------------------------------------------------------------------------------------------

_BESIDE: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8.5, "color": INK}
_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "svg.fonttype": "none",
    "axes.edgecolor": BOUND,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def styled() -> Iterator[None]:
    """The same look whatever the reader's own matplotlib settings are."""
    import matplotlib.style

    with matplotlib.style.context(["default", _STYLE]):
        yield


def figure_of(height: float, width: float = WIDTH, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches, and its panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    row = list(figure.subplots(1, panels, squeeze=False)[0])
    for axes in row:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
    return figure, row


def _bars(count: int, panels: int = 1) -> tuple[Figure, list[Axes]]:
    figure, row = figure_of(1.3 + 0.36 * count, WIDTH * panels, panels)
    for axes in row:
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-0.6, count - 0.4)
    return figure, row


def line_style(colour: str, place: int, dashed: bool = False) -> dict[str, Any]:
    """How the line of a row is drawn."""
    marker = MARKERS[place % len(MARKERS)]
    return {
        "color": colour,
        "linestyle": "--" if dashed else "-",
        "linewidth": 1.8,
        "marker": marker,
        "markersize": 5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    }


def legend(axes: Axes) -> None:
    """Names of the lines, beside the panel."""
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, handlelength=1.6)


def _kind_colour(kind: str) -> str:
    return KIND_COLOURS.get(kind, BOUND)


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


def _std(values: Sequence[float]) -> float:
    centre = sum(values) / len(values)
    return math.sqrt(sum((value - centre) ** 2 for value in values) / (len(values) - 1))


def svg_of(figure: Figure, prefix: str, title: str) -> str:
    """The figure as one element for a page: no XML head, no addresses, ids of its own."""
    from html import escape

    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    nothing: dict[str, None] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": prefix}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)  # HTML knows both, and a reader may look for addresses
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(title, quote=True)}"', 1)
